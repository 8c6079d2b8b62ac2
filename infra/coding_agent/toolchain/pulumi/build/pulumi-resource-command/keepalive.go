package main

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	keepAliveInterval = 15 * time.Second
	keepAlivePatience = 45 * time.Second // for an answer: a host may be busy
)

// keepAlive asks a host now and then whether it is still there, and closes a connection on which nothing comes back: a
// host that is switched off, or a network that drops everything, says nothing by itself. It returns at once; what it
// returns tells whether the connection was given up.
func keepAlive(client *ssh.Client, closeAll func()) (lost func() error) {
	var reason atomic.Pointer[error]
	ended := make(chan struct{})
	go func() {
		client.Wait()
		close(ended)
	}()
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(keepAliveInterval):
			}
			if !answers(client, ended) {
				err := fmt.Errorf("the host has not answered for %s", keepAlivePatience)
				reason.Store(&err)
				closeAll()
				return
			}
		}
	}()
	return func() error {
		if err := reason.Load(); err != nil {
			return *err
		}
		return nil
	}
}

// answers asks once. A server that does not know the question answers as well: with a refusal.
func answers(client *ssh.Client, ended <-chan struct{}) bool {
	answered := make(chan struct{})
	go func() {
		client.SendRequest("keepalive@openssh.com", true, nil)
		close(answered)
	}()
	select {
	case <-answered:
		return true
	case <-ended:
		return true
	case <-time.After(keepAlivePatience):
		return false
	}
}
