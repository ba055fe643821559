package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"
	"time"
)

// MaxTarOut is the largest archive TarOut takes from a guest, in bytes.
const MaxTarOut = 64 << 30

// ErrTooLarge says that a file or archive in the guest exceeds what the caller allowed.
var ErrTooLarge = errors.New("guest: larger than allowed")

// ReadFile returns the content of a file in the guest, which may have at most max bytes (ErrTooLarge).
// Only regular files are read.
func (c *Client) ReadFile(ctx context.Context, path string, max int64) ([]byte, error) {
	var e encoder
	e.string(path)
	e.int(max)
	var content []byte
	_, err := c.call(ctx, opReadFile, e.b, func(p []byte) error {
		if int64(len(content)+len(p)) > max {
			return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, max)
		}
		content = append(content, p...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return content, nil
}

// WriteFile makes a file in the guest, or replaces its content, and gives it mode
// and owner (as Cmd.User). Its directory must exist.
func (c *Client) WriteFile(ctx context.Context, path string, data []byte, mode fs.FileMode, user string) error {
	var e encoder
	e.string(path)
	e.uint(uint64(mode))
	e.string(user)
	first := data[:min(len(data), Window/2)]
	rest := data[len(first):]
	s, err := c.open(ctx, opWriteFile, e.b, first, len(rest) == 0)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		_, err = c.finish(ctx, s, nil)
		return err
	}
	return c.upload(ctx, s, &sliceReader{rest})
}

type sliceReader struct{ b []byte }

func (r *sliceReader) Read(p []byte) (int, error) {
	n := copy(p, r.b)
	if r.b = r.b[n:]; len(r.b) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// upload sends r to the stream and waits for the result. The reading happens in
// a goroutine that upload waits for, unless it is inside a Read of r when the stream ends.
func (c *Client) upload(ctx context.Context, s *stream, r io.Reader) error {
	sent := make(chan error, 1)
	ended := make(chan struct{})
	// The result can overtake the news that the last frame went out.
	var atEnd atomic.Bool
	go func() {
		buf := make([]byte, headerSize+MaxPayload)
		for {
			n, err := io.ReadAtLeast(r, buf[headerSize:], MaxPayload)
			last := err == io.EOF || err == io.ErrUnexpectedEOF
			if last {
				atEnd.Store(true)
			}
			if err != nil && !last {
				// First the reason, then what makes the stream end.
				sent <- fmt.Errorf("guest: %v: reading what to send: %w", s.op, err)
				select {
				case <-ended:
				default:
					c.cancel(s)
				}
				return
			}
			if c.send(s, buf[:headerSize+n], last) != nil || last {
				sent <- nil
				return
			}
		}
	}()
	_, err := c.finish(ctx, s, nil)
	close(ended)
	s.out.close(errStreamEnded)
	select {
	case readErr := <-sent:
		if readErr != nil {
			return readErr
		}
	default:
		if err == nil && !atEnd.Load() {
			return violation("a result of %v before the end of its input", s.op)
		}
	}
	return err
}

// TarIn unpacks the archive r below dir, which is made if need be. Every file belongs to
// user (as Cmd.User), or to the owners in the archive if user is "tar". Entries that lead out of
// dir, devices and sockets are errors; existing files are replaced.
func (c *Client) TarIn(ctx context.Context, dir string, r io.Reader, user string) error {
	var e encoder
	e.string(dir)
	e.string(user)
	s, err := c.open(ctx, opTarIn, e.b, nil, false)
	if err != nil {
		return err
	}
	return c.upload(ctx, s, r)
}

// TarOut writes an archive of paths, relative to dir in the guest, to w. What is
// written is the guest's word and may be anything: unpack it with os.Root. It
// ends with ErrTooLarge after MaxTarOut bytes; a smaller bound is a w that fails.
func (c *Client) TarOut(ctx context.Context, dir string, paths []string, w io.Writer) error {
	var e encoder
	e.string(dir)
	e.strings(paths)
	var total int64
	_, err := c.call(ctx, opTarOut, e.b, func(p []byte) error {
		if total += int64(len(p)); total > MaxTarOut {
			return fmt.Errorf("%w: an archive of more than %d bytes", ErrTooLarge, int64(MaxTarOut))
		}
		_, err := w.Write(p)
		return err
	})
	return err
}

// MkdirAll makes a directory and what is missing above it. Those it makes belong to user (as Cmd.User).
func (c *Client) MkdirAll(ctx context.Context, path string, mode fs.FileMode, user string) error {
	var e encoder
	e.string(path)
	e.uint(uint64(mode))
	e.string(user)
	_, err := c.call(ctx, opMkdir, e.b, nil)
	return err
}

// Remove removes a path and everything below it; a path that does not exist is removed already.
func (c *Client) Remove(ctx context.Context, path string) error {
	var e encoder
	e.string(path)
	_, err := c.call(ctx, opRemove, e.b, nil)
	return err
}

// Stat says what a path is, without following a symbolic link.
func (c *Client) Stat(ctx context.Context, path string) (FileInfo, error) {
	var e encoder
	e.string(path)
	b, err := c.call(ctx, opStat, e.b, nil)
	if err != nil {
		return FileInfo{}, err
	}
	f, err := decodeFileInfo(b)
	return decoded(c, f, err)
}

// Resume gives a restored machine its own identity: clock, entropy, names, network.
// Nothing of a job may run before it.
func (c *Client) Resume(ctx context.Context, id Identity) error {
	_, err := c.call(ctx, opResume, id.encode(), nil)
	return err
}

// Usage asks what the machine has used.
func (c *Client) Usage(ctx context.Context) (Usage, error) {
	b, err := c.call(ctx, opUsage, nil, nil)
	if err != nil {
		return Usage{}, err
	}
	u, err := decodeUsage(b)
	return decoded(c, u, err)
}

// Sync writes what is dirty in the guest to its disks.
func (c *Client) Sync(ctx context.Context) error {
	_, err := c.call(ctx, opSync, nil, nil)
	return err
}

// Poweroff asks the machine to end. It returns when the agent has agreed; the
// machine's Wait says when it has ended.
func (c *Client) Poweroff(ctx context.Context) error {
	_, err := c.call(ctx, opPoweroff, nil, nil)
	return err
}

// Ping returns how long the agent took to answer.
func (c *Client) Ping(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	_, err := c.call(ctx, opPing, nil, nil)
	return time.Since(start), err
}

// Floor runs argv n times inside the guest, one after the other and with its
// output discarded, and returns how long each took from before the fork to the
// end: what an Exec cannot be faster than. At most 2000 times.
func (c *Client) Floor(ctx context.Context, argv []string, n int) ([]time.Duration, error) {
	var e encoder
	e.strings(argv)
	e.uint(uint64(n))
	b, err := c.call(ctx, opFloor, e.b, nil)
	if err != nil {
		return nil, err
	}
	if len(b) != 8*n {
		_, err := decoded(c, 0, violation("floor of %d bytes for %d runs", len(b), n))
		return nil, err
	}
	d := make([]time.Duration, n)
	for i := range d {
		d[i] = time.Duration(binary.BigEndian.Uint64(b[8*i:]))
	}
	return d, nil
}
