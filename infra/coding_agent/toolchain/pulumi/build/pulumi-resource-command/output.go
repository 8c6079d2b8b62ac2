package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
)

// output keeps what a command writes, and passes each line of it on as it comes.
type output struct {
	lock             sync.Mutex
	out, errs, mixed bytes.Buffer
	logging          string
	show             func(line string)
}

// capture returns an output whose lines are shown as far as `logging` says; by default all are.
func capture[T ~string](logging *T, show func(line string)) *output {
	o := &output{logging: logBoth, show: show}
	if logging != nil {
		o.logging = string(*logging)
	}
	return o
}

// stream is one of the two ends of a command's output.
type stream struct {
	*output
	kept  *bytes.Buffer
	shown bool
	line  []byte // the beginning of a line whose end has not come yet
}

var _ io.Writer = (*stream)(nil)

func (o *output) streams() (stdout, stderr *stream) {
	stdout = &stream{output: o, kept: &o.out, shown: o.logging == logStdout || o.logging == logBoth}
	stderr = &stream{output: o, kept: &o.errs, shown: o.logging == logStderr || o.logging == logBoth}
	return stdout, stderr
}

// Write keeps what a command writes.
func (s *stream) Write(data []byte) (int, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.kept.Write(data)
	s.mixed.Write(data)
	if !s.shown {
		return len(data), nil
	}
	s.line = append(s.line, data...)
	for {
		line, rest, whole := bytes.Cut(s.line, []byte("\n"))
		if !whole {
			return len(data), nil
		}
		s.show(string(line))
		s.line = rest
	}
}

// end shows what came after the last end of a line.
func (s *stream) end() {
	s.lock.Lock()
	defer s.lock.Unlock()
	if len(s.line) > 0 {
		s.show(string(s.line))
		s.line = nil
	}
}

// failed puts around an error the command and its output, in the words of the official plugin: host_steps.py reads them.
func (o *output) failed(err error, command string) error {
	return fmt.Errorf("%w: running %q:\n%s", err, command, o.mixed.String())
}

// stdout and stderr are what a resource has as its outputs: without the last end of a line.
func (o *output) stdout() string { return strings.TrimSuffix(o.out.String(), "\n") }
func (o *output) stderr() string { return strings.TrimSuffix(o.errs.String(), "\n") }
