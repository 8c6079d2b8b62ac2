// Package lifeline ends a plugin with the engine that started it.
//
// The engine asks its plugins to end when it is done. One that is killed asks nobody, and a plugin that stayed would
// still order servers and hold connections that no state knows of.
package lifeline

import (
	"os"
	"time"
)

// interval is how soon after the engine a plugin ends.
const interval = time.Second

// Watch ends this process once the process that started it is gone. It returns at once.
//
// A process whose parent ends is given another parent, on every system that the engine runs on but Windows, where the
// parent's id stays and the SDK's own check of the engine's address remains.
func Watch() {
	engine := os.Getppid()
	go func() {
		for range time.Tick(interval) {
			if os.Getppid() != engine {
				os.Exit(1)
			}
		}
	}()
}
