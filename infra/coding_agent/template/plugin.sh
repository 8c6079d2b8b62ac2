#!/bin/sh
# The engine starts the provider through this: Pulumi.yaml names this folder. The program of the same name on PATH
# belongs to the installed package.
if command -v pulumi-resource-coding-agent >/dev/null; then
  exec pulumi-resource-coding-agent "$@"
fi
echo "coding-agent is not on PATH: eval \"\$(coding-agent env)\"" >&2
exit 1
