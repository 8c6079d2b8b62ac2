package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"golang.org/x/crypto/ssh"
)

const (
	firstPause   = time.Second / 4 // between two attempts; each further one is twice as long
	longestPause = 10 * time.Second
)

// host is a host that is logged in to.
type host struct {
	*ssh.Client
	lost func() error // why the connection was given up, where it was
	done func()
}

// dial logs in, repeatedly if need be. The caller calls `done` of the host, which closes the proxy as well.
func (c Connection) dial(ctx context.Context) (*host, error) {
	through := func(ctx context.Context, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	var opened []*ssh.Client
	closeAll := func() {
		for _, client := range opened {
			client.Close()
		}
	}
	if c.Proxy != nil {
		proxy, err := c.Proxy.patiently(ctx, through)
		if err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		opened = append(opened, proxy)
		through = func(ctx context.Context, address string) (net.Conn, error) {
			return proxy.DialContext(ctx, "tcp", address)
		}
	}
	client, err := c.patiently(ctx, through)
	if err != nil {
		closeAll()
		return nil, err
	}
	opened = append(opened, client)
	// An engine that cancels ends what runs over the connection.
	stop := context.AfterFunc(ctx, closeAll)
	return &host{Client: client, lost: keepAlive(client, closeAll), done: func() { stop(); closeAll() }}, nil
}

// because returns the error of what was done over a connection, with the reason where the connection was given up.
func (h *host) because(ctx context.Context, err error) error {
	if reason := errors.Join(ctx.Err(), h.lost()); err != nil && reason != nil {
		return fmt.Errorf("%w: %w", reason, err)
	}
	return err
}

type dialer = func(ctx context.Context, address string) (net.Conn, error)

// patiently logs in. As with the official plugin the limit is that of failures which are borne: one more is the end.
func (l Login) patiently(ctx context.Context, through dialer) (*ssh.Client, error) {
	limit, pause := or(l.DialErrorLimit, defaultLimit), firstPause
	for attempt := 1; ; attempt++ {
		client, err := l.once(ctx, through)
		if err == nil {
			return client, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if hopeless := (*unusable)(nil); errors.As(err, &hopeless) {
			return nil, err
		}
		if limit >= 0 && attempt > limit {
			return nil, fmt.Errorf("after %d failed attempts: %w", limit, err)
		}
		allowed := "inf"
		if limit >= 0 {
			allowed = strconv.Itoa(limit)
		}
		p.GetLogger(ctx).InfoStatusf("Dial %d/%s failed: %s; retrying in %s", attempt, allowed, err, pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		pause = min(2*pause, longestPause)
	}
}

// unusable is what no other attempt mends: a key that can't be read.
type unusable struct{ error }

func (u *unusable) Unwrap() error { return u.error }

// once makes one attempt.
func (l Login) once(ctx context.Context, through dialer) (*ssh.Client, error) {
	if seconds := or(l.PerDialTimeout, defaultTimeout); seconds > 0 {
		limited, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
		ctx = limited
	}
	config, done, err := l.config()
	if err != nil {
		return nil, &unusable{err}
	}
	defer done()
	address := net.JoinHostPort(l.Host, strconv.Itoa(int(math.Round(or(l.Port, defaultPort)))))
	conn, err := through(ctx, address)
	if err != nil {
		return nil, err
	}
	// The limit holds for the whole login, also through a proxy, whose connections know no deadline.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	connection, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if !stop() && err == nil {
		connection.Close()
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return nil, err
	}
	return ssh.NewClient(connection, channels, requests), nil
}
