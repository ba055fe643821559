// Command tool is what the conformance suite runs in machines that have no
// shell.
package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch args[0] {
	case "echo": // WORDS…
		fmt.Println(strings.Join(args[1:], " "))
	case "exit": // CODE
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		os.Exit(n)
	case "sleep": // says so, and sleeps for a long time
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "put": // FILE TEXT: at the beginning, in 16 bytes, to the device
		f, err := os.OpenFile(args[1], os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		b := make([]byte, 512)
		copy(b, args[2])
		if _, err := f.Write(b); err != nil {
			return err
		}
		f.Sync() // not every place a suite chooses knows how
		return f.Close()
	case "get": // FILE
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		b := make([]byte, 512)
		if _, err := io.ReadFull(f, b); err != nil {
			return err
		}
		fmt.Println(strings.TrimRight(string(b), "\x00"))
	case "http": // ADDRESS: the body of its front page
		c, err := net.DialTimeout("tcp", args[1], 20*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		b, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		_, body, _ := strings.Cut(string(b), "\r\n\r\n")
		fmt.Println(body)
	case "fill": // FILE MIB
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		f, err := os.OpenFile(args[1], os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		b := make([]byte, 1<<20)
		rand.Read(b)
		for range n {
			if _, err := f.Write(b); err != nil {
				return err
			}
		}
		if err := f.Sync(); err != nil {
			return err
		}
		return f.Close()
	case "random":
		b := make([]byte, 16)
		rand.Read(b)
		fmt.Printf("%x\n", b)
	case "hostname":
		h, err := os.Hostname()
		if err != nil {
			return err
		}
		fmt.Println(h)
	case "time": // milliseconds since 1970
		fmt.Println(time.Now().UnixMilli())
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
	return nil
}
