package main

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// config returns what ssh needs to know for a login, and how to close the agent that the login may ask.
func (l Login) config() (config *ssh.ClientConfig, done func(), err error) {
	config = &ssh.ClientConfig{User: or(l.User, defaultUser)}
	if err := l.trust(config); err != nil {
		return nil, nil, err
	}
	keys, done, err := l.keys()
	if err != nil {
		return nil, nil, err
	}
	if keys != nil {
		config.Auth = append(config.Auth, ssh.PublicKeysCallback(keys))
	}
	if password := text(l.Password); password != "" {
		config.Auth = append(config.Auth, ssh.Password(password), ssh.KeyboardInteractive(
			func(_, _ string, questions []string, _ []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i := range answers {
					answers[i] = password
				}
				return answers, nil
			}))
	}
	return config, done, nil
}

// trust lets only the host in that has the key which was given. As the package documents it, any host is believed where
// none was.
func (l Login) trust(config *ssh.ClientConfig) error {
	config.HostKeyCallback = ssh.InsecureIgnoreHostKey() //nolint:gosec
	if text(l.HostKey) == "" {
		return nil
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(*l.HostKey))
	if err != nil {
		return fmt.Errorf("failed to parse host key: %w", err)
	}
	config.HostKeyCallback = ssh.FixedHostKey(key)
	// The host may have keys of other kinds, and would show one of those.
	config.HostKeyAlgorithms = []string{key.Type()}
	if key.Type() == ssh.KeyAlgoRSA {
		config.HostKeyAlgorithms = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return nil
}

// keys returns the keys to log in with: the one that was given and those of the agent. They are one method together, as
// ssh tries each method once. Without any the answer is nil.
func (l Login) keys() (signers func() ([]ssh.Signer, error), done func(), err error) {
	var own []ssh.Signer
	if text(l.PrivateKey) != "" {
		signer, err := l.privateKey()
		if err != nil {
			return nil, nil, fmt.Errorf("failed to parse private key: %w", err)
		}
		own = append(own, signer)
	}
	socket := os.Getenv("SSH_AUTH_SOCK")
	if text(l.AgentSocketPath) != "" {
		socket = *l.AgentSocketPath
	}
	done = func() {}
	if socket != "" {
		conn, err := net.Dial("unix", socket)
		switch {
		case err == nil:
			held := agent.NewClient(conn)
			return func() ([]ssh.Signer, error) { return withAgent(own, held) }, func() { conn.Close() }, nil
		case l.AgentSocketPath != nil:
			return nil, nil, fmt.Errorf("failed to reach the ssh agent: %w", err)
		}
	}
	if len(own) > 0 {
		signers = func() ([]ssh.Signer, error) { return own, nil }
	}
	return signers, done, nil
}

func (l Login) privateKey() (ssh.Signer, error) {
	if password := text(l.PrivateKeyPassword); password != "" {
		return ssh.ParsePrivateKeyWithPassphrase([]byte(*l.PrivateKey), []byte(password))
	}
	return ssh.ParsePrivateKey([]byte(*l.PrivateKey))
}

// withAgent returns the keys that were given and those of an agent, which may fail where there are others.
func withAgent(own []ssh.Signer, held agent.Agent) ([]ssh.Signer, error) {
	others, err := held.Signers()
	if err != nil && len(own) > 0 {
		return own, nil
	}
	return append(own[:len(own):len(own)], others...), err
}
