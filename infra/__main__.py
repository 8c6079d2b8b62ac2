from coding_agent.program import main

main()
