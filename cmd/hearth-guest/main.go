// Command hearth-guest is the agent inside a machine.
//
// As the first process of a machine it boots it and serves the guest protocol
// (package boot). By hand:
//
//	hearth-guest version           print the version
//	hearth-guest serve --unix PATH serve the protocol on a Unix socket, as an ordinary process
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/guest/boot"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "dev"

func main() {
	args := os.Args[1:]
	switch {
	case os.Getpid() == 1 && (len(args) == 0 || args[0] != "serve"):
		boot.Main(version) // the kernel hands what it does not know of its command line to init
	case len(args) == 1 && args[0] == "version":
		fmt.Println("hearth-guest", version, "protocol", guest.ProtocolVersion)
	case len(args) == 3 && args[0] == "serve" && args[1] == "--unix":
		if err := serve(args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "hearth-guest:", err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: hearth-guest version | serve --unix PATH")
		os.Exit(2)
	}
}

// serve serves on a Unix socket until it gets SIGINT or SIGTERM.
func serve(path string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	server := guest.NewServer(guest.Options{Release: version, Logf: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "hearth-guest: "+format+"\n", args...)
	}})
	defer server.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		conns.Go(func() {
			defer conn.Close()
			if err := server.Serve(ctx, conn); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "hearth-guest:", err)
			}
		})
	}
}
