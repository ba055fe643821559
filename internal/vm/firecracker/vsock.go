package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
)

// agentPort is where the agent listens.
const agentPort = 1024

// handshakeLimit is how long the guest may take to accept a connection. It is
// more than a busy guest needs and less than whoever dials has patience: a
// request that was made while the guest's driver was not up yet may never be
// answered.
const handshakeLimit = 3 * time.Second

// dialVsock connects through a machine's vsock socket to a port of the guest.
func dialVsock(ctx context.Context, path string, port uint32) (net.Conn, error) {
	c, err := vm.DialUnix(ctx, path)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(handshakeLimit))
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err = handshake(c, port)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// handshake asks for a port. It reads not a byte beyond the answer, since what
// follows is the agent's.
func handshake(c io.ReadWriter, port uint32) error {
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	var line []byte
	for b := make([]byte, 1); ; {
		n, err := c.Read(b)
		if n == 1 && b[0] == '\n' {
			break
		}
		line = append(line, b[:n]...)
		if len(line) > 32 {
			return fmt.Errorf("vsock: Firecracker answers %q", line)
		}
		if errors.Is(err, io.EOF) {
			if len(line) == 0 {
				return fmt.Errorf("vsock: nobody listens at port %d of the guest", port)
			}
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("vsock: no answer from port %d of the guest: %w", port, err)
		}
	}
	// "OK " and the port that the host's end got.
	number, ok := strings.CutPrefix(string(bytes.TrimSuffix(line, []byte("\r"))), "OK ")
	if _, err := strconv.ParseUint(number, 10, 32); !ok || err != nil {
		return fmt.Errorf("vsock: Firecracker answers %q", line)
	}
	return nil
}
