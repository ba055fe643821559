// Command hearth runs GitHub Actions workflows, every job in a microVM of its
// own, and remembers what came of it. `hearth help` lists what it can do.
package main

import (
	"os"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(Main()) }
