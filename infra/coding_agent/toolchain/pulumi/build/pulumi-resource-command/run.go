package main

import (
	"context"

	"github.com/pulumi/pulumi-go-provider/infer"
)

// Run is command:local:run, a command on this machine that runs whenever the program does.
type Run struct{}

// Annotate names the function.
func (*Run) Annotate(a infer.Annotator) { a.SetToken("local", "run") }

// RunInputs are what the function is given.
type RunInputs struct {
	LocalOptions
	Command string `pulumi:"command"`
}

// RunOutputs are what the function returns.
type RunOutputs struct {
	RunInputs
	LocalResult
}

// Invoke runs the command.
func (*Run) Invoke(ctx context.Context, r infer.FunctionRequest[RunInputs]) (
	response infer.FunctionResponse[RunOutputs], err error,
) {
	response.Output.RunInputs = r.Input
	err = response.Output.run(ctx, r.Input.LocalOptions, &r.Input.Command)
	return response, err
}
