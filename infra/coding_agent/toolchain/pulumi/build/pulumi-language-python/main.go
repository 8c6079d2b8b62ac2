// The engine's language host for Python programs, as small as this project needs it.
//
// Pulumi's own is not served by Go module proxies, so an engine built from source would come without one and a bare
// `pulumi up` could not run a Python project. This one starts Pulumi's own `pulumi-language-python-exec`, which the
// SDK's module does carry and which the build puts beside this program.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil"
	"github.com/pulumi/pulumi/sdk/v3/go/common/version"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

// The program ends with this code when it has already told the user what is wrong.
const exitAlreadySaid = 32

type host struct {
	pulumirpc.UnimplementedLanguageRuntimeServer
	engine string
	alive  context.Context // ends when the engine is gone or cancels
	stop   context.CancelFunc
}

func main() {
	// Flags of the official host that the engine may pass.
	flag.String("root", "", "the project's folder")
	flag.String("tracing", "", "ignored")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: pulumi-language-python ENGINE_ADDRESS (the engine starts it)")
		os.Exit(2)
	}
	alive, stop := context.WithCancel(context.Background())
	h := &host{engine: flag.Arg(0), alive: alive, stop: stop}
	cancel := make(chan bool)
	handle, err := rpcutil.ServeWithOptions(rpcutil.ServeOptions{
		Cancel: cancel,
		Init: func(server *grpc.Server) error {
			pulumirpc.RegisterLanguageRuntimeServer(server, h)
			return nil
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-language-python:", err)
		os.Exit(1)
	}
	go func() {
		waitForEnd()
		stop() // kills the program, if it still runs
		close(cancel)
	}()
	fmt.Println(handle.Port)
	if err := <-handle.Done; err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-language-python:", err)
		os.Exit(1)
	}
}

// waitForEnd returns when the engine asks for the end (it interrupts its plugins) or was itself killed.
func waitForEnd() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, os.Interrupt, syscall.SIGTERM)
	for parent := os.Getppid(); os.Getppid() == parent; {
		select {
		case <-asked:
			return
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (h *host) Handshake(
	context.Context, *pulumirpc.LanguageHandshakeRequest,
) (*pulumirpc.LanguageHandshakeResponse, error) {
	return &pulumirpc.LanguageHandshakeResponse{}, nil
}

func (h *host) GetPluginInfo(context.Context, *emptypb.Empty) (*pulumirpc.PluginInfo, error) {
	return &pulumirpc.PluginInfo{Version: version.Version}, nil
}

// The providers that a program uses stand in its Pulumi.yaml or are asked for when a resource needs one.
func (h *host) GetRequiredPackages(
	context.Context, *pulumirpc.GetRequiredPackagesRequest,
) (*pulumirpc.GetRequiredPackagesResponse, error) {
	return &pulumirpc.GetRequiredPackagesResponse{}, nil
}

func (h *host) GetRequiredPlugins(
	context.Context, *pulumirpc.GetRequiredPluginsRequest,
) (*pulumirpc.GetRequiredPluginsResponse, error) {
	return &pulumirpc.GetRequiredPluginsResponse{}, nil
}

func (h *host) GetProgramDependencies(
	context.Context, *pulumirpc.GetProgramDependenciesRequest,
) (*pulumirpc.GetProgramDependenciesResponse, error) {
	return &pulumirpc.GetProgramDependenciesResponse{}, nil
}

func (h *host) About(context.Context, *pulumirpc.AboutRequest) (*pulumirpc.AboutResponse, error) {
	python, err := python(nil)
	if err != nil {
		return nil, err
	}
	return &pulumirpc.AboutResponse{Executable: python}, nil
}

func (h *host) Cancel(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	h.stop()
	return &emptypb.Empty{}, nil
}

func (h *host) Run(_ context.Context, req *pulumirpc.RunRequest) (*pulumirpc.RunResponse, error) {
	command, err := h.command(req)
	if err != nil {
		return nil, err
	}
	err = command.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return &pulumirpc.RunResponse{}, nil
	case !errors.As(err, &exit):
		return nil, status.Errorf(codes.FailedPrecondition, "the program can't be started: %v", err)
	case exit.ExitCode() == exitAlreadySaid:
		return &pulumirpc.RunResponse{Bail: true}, nil
	case exit.ExitCode() < 0:
		return &pulumirpc.RunResponse{Error: fmt.Sprintf("the program was ended: %v", exit)}, nil
	default:
		text := fmt.Sprintf("the program ended with exit code %d", exit.ExitCode())
		return &pulumirpc.RunResponse{Error: text}, nil
	}
}

func (h *host) command(req *pulumirpc.RunRequest) (*exec.Cmd, error) {
	python, err := python(req.GetInfo())
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// The SDK reads a mapping and a list; what is nil here would be null there.
	config, secretKeys := map[string]string{}, []string{}
	maps.Copy(config, req.GetConfig())
	values, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	secret, err := json.Marshal(append(secretKeys, req.GetConfigSecretKeys()...))
	if err != nil {
		return nil, err
	}
	info := req.GetInfo()
	arguments := []string{
		"-u", filepath.Join(filepath.Dir(self), "pulumi-language-python-exec"),
		"--engine", h.engine,
		"--monitor", req.GetMonitorAddress(),
		"--project", req.GetProject(),
		"--organization", req.GetOrganization(),
		"--root_directory", info.GetRootDirectory(),
		"--stack", req.GetStack(),
		"--pwd", req.GetPwd(),
		"--parallel", strconv.Itoa(int(req.GetParallel())),
		"--dry_run", strconv.FormatBool(req.GetDryRun()),
		filepath.Join(info.GetProgramDirectory(), info.GetEntryPoint()),
	}
	command := exec.CommandContext(h.alive, python, append(arguments, req.GetArgs()...)...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.Env = append(os.Environ(), "PULUMI_CONFIG="+string(values), "PULUMI_CONFIG_SECRET_KEYS="+string(secret))
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGKILL) }
	command.WaitDelay = 5 * time.Second
	return command, nil
}

// python returns the interpreter: the project's virtualenv when Pulumi.yaml names one, else the one on PATH.
func python(info *pulumirpc.ProgramInfo) (string, error) {
	options := info.GetOptions().GetFields()
	if chain := options["toolchain"].GetStringValue(); chain != "" && chain != "pip" {
		return "", status.Errorf(codes.Unimplemented,
			"this engine was built from source and knows no Python toolchain but pip, Pulumi.yaml asks for %q", chain)
	}
	if folder := options["virtualenv"].GetStringValue(); folder != "" {
		if !filepath.IsAbs(folder) {
			folder = filepath.Join(info.GetRootDirectory(), folder)
		}
		return filepath.Join(folder, "bin", "python"), nil
	}
	if named := os.Getenv("PULUMI_PYTHON_CMD"); named != "" {
		return exec.LookPath(named)
	}
	return exec.LookPath("python3")
}
