// Package docker is a client of a container engine's HTTP API (Docker's, version 1.40
// and later): the few requests that running a job takes, over any stream to it.
//
// The engine is inside a machine, and so belongs to the job: whatever answers may
// answer anything. Therefore
//
//   - every answer is bounded: a JSON document by [maxAnswer], a line of progress by
//     [maxLine], all lines of a pull by [maxLines], an error's text by [maxText],
//     headers by [maxHeaders]; output is passed on as it comes and never kept;
//   - what an answer holds is checked before it is used again: ids are hexadecimal,
//     exit codes small numbers, ports numbers;
//   - nothing is tried again and nothing is waited for but by the caller's context.
//
// Parsing of what users write as options of `docker create` is the engine's own
// program's; it is not here.
//
// # Three kinds of failure
//
// The engine's "no" is an [*Error] with its status. An answer that is none of the
// API's is [ErrAnswer]. What the stream itself says (there is no engine, the machine
// is gone) comes as it is.
package docker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds on what an engine may say.
const (
	maxAnswer  = 4 << 20
	maxLine    = 64 << 10
	maxLines   = 100_000
	maxText    = 4 << 10
	maxHeaders = 64 << 10
)

// apiVersion is the oldest API that has all that is asked for.
const apiVersion = "1.40"

// ErrAnswer says that what came back is no answer of the API.
var ErrAnswer = errors.New("the container engine's answer makes no sense")

// Error is what the engine says against a request.
type Error struct {
	Status  int    // of HTTP
	Message string // its words, at most 4 KiB; from the guest
}

func (e *Error) Error() string { return e.Message }

// NotFound reports whether err says that there is no such image or container.
func NotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusNotFound
}

// Client speaks to one engine. Safe for concurrent use.
type Client struct {
	http *http.Client
	idle func()
}

// New returns a client whose connections dial opens. Close it when it is of no use.
func New(dial func(context.Context) (net.Conn, error)) *Client {
	t := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(context.WithoutCancel(ctx)) },
		MaxResponseHeaderBytes: maxHeaders,
		MaxIdleConns:           4,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        5 * time.Second, // an open stream keeps a machine from being paused
		DisableCompression:     true,
	}
	return &Client{idle: t.CloseIdleConnections, http: &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return ErrAnswer },
	}}
}

// Close closes the connections that nobody uses.
func (c *Client) Close() { c.idle() }

// do sends a request and returns the response if its status is of the wanted ones.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body any, header http.Header, want ...int) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "docker", Path: "/v" + apiVersion + path, RawQuery: query.Encode()}
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, header)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// What the transport says around it names an address that nobody knows.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return nil, err
	}
	if slices.Contains(want, resp.StatusCode) {
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode < 400 {
		return nil, fmt.Errorf("%w: status %d", ErrAnswer, resp.StatusCode)
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxText))
	said := &Error{Status: resp.StatusCode, Message: strings.TrimSpace(string(b))}
	var m struct{ Message string }
	if json.Unmarshal(b, &m) == nil && m.Message != "" {
		said.Message = m.Message
	}
	if said.Message == "" {
		said.Message = http.StatusText(said.Status)
	}
	return nil, said
}

// call is do for an answer that is a JSON document, or of no interest (out nil).
func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, out any, want ...int) error {
	resp, err := c.do(ctx, method, path, query, body, nil, want...)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return err
	case len(b) > maxAnswer:
		return fmt.Errorf("%w: more than %d bytes", ErrAnswer, maxAnswer)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	return nil
}

// Version asks which API the engine speaks ("1.45").
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct{ APIVersion string }
	if err := c.call(ctx, http.MethodGet, "/version", nil, nil, &v, http.StatusOK); err != nil {
		return "", err
	}
	if len(v.APIVersion) > 16 {
		return "", ErrAnswer
	}
	return v.APIVersion, nil
}

// ValidID reports whether an id can be one of a container, network or exec.
func ValidID(id string) bool {
	return len(id) >= 12 && len(id) <= 64 && strings.Trim(id, "0123456789abcdef") == ""
}

func checked(id string) (string, error) {
	if !ValidID(id) {
		return "", fmt.Errorf("%w: no id", ErrAnswer)
	}
	return id, nil
}

// Auth says who pulls an image. The zero Auth is nobody.
type Auth struct {
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	Server   string `json:"serveraddress,omitempty"` // the registry's name
}

// Pull pulls an image, and tells of it a line at a time as the engine's own program
// does where it has no terminal.
func (c *Client) Pull(ctx context.Context, image string, auth Auth, told func(line string)) error {
	name, tag := SplitImage(image)
	header := http.Header{}
	if auth.Username != "" || auth.Password != "" {
		b, err := json.Marshal(auth)
		if err != nil {
			return err
		}
		header.Set("X-Registry-Auth", base64.URLEncoding.EncodeToString(b))
	}
	resp, err := c.do(ctx, http.MethodPost, "/images/create", url.Values{"fromImage": {name}, "tag": {tag}}, nil, header, http.StatusOK)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := jsonLines{r: resp.Body}
	for {
		var m struct {
			ID          string
			Status      string
			Error       string
			ErrorDetail struct{ Message string }
			Progress    struct{ Total int64 } `json:"progressDetail"`
		}
		switch err := lines.next(&m); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case m.Error != "" || m.ErrorDetail.Message != "":
			text := m.ErrorDetail.Message
			if text == "" {
				text = m.Error
			}
			return &Error{Status: http.StatusInternalServerError, Message: text[:min(len(text), maxText)]}
		case m.Progress.Total != 0 || m.Status == "": // a bar
		case m.ID != "":
			told(m.ID + ": " + m.Status)
		default:
			told(m.Status)
		}
	}
}

// jsonLines reads a stream of JSON documents, one a line.
type jsonLines struct {
	r   io.Reader
	buf []byte
	end error
	n   int
}

func (l *jsonLines) next(to any) error {
	for {
		if line, rest, ok := bytes.Cut(l.buf, []byte("\n")); ok || l.end == io.EOF && len(l.buf) > 0 {
			l.buf = rest
			if line = bytes.TrimSpace(line); len(line) == 0 {
				continue
			}
			if l.n++; l.n > maxLines {
				return fmt.Errorf("%w: more than %d lines", ErrAnswer, maxLines)
			}
			if err := json.Unmarshal(line, to); err != nil {
				return fmt.Errorf("%w: %w", ErrAnswer, err)
			}
			return nil
		}
		if l.end != nil {
			return l.end
		}
		if len(l.buf) > maxLine {
			return fmt.Errorf("%w: a line of more than %d bytes", ErrAnswer, maxLine)
		}
		chunk := make([]byte, 16<<10)
		n, err := l.r.Read(chunk)
		l.buf, l.end = append(l.buf, chunk[:n]...), err
	}
}

// SplitImage takes an image's name apart: what is before its tag or digest, and that
// ("latest" where there is none).
func SplitImage(image string) (name, tag string) {
	if name, digest, ok := strings.Cut(image, "@"); ok {
		if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
			name = name[:i] // the digest is more than the tag
		}
		return name, digest
	}
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		return image[:i], image[i+1:]
	}
	return image, "latest"
}

// Hub is the registry of images whose name has none.
const Hub = "docker.io"

// RegistryOf is the registry that an image's name names, or [Hub].
func RegistryOf(image string) string {
	first, _, ok := strings.Cut(image, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost") && first != "index.docker.io" {
		return first
	}
	return Hub
}

// Tag gives an image another name.
func (c *Client) Tag(ctx context.Context, image, as string) error {
	name, tag := SplitImage(as)
	return c.call(ctx, http.MethodPost, "/images/"+image+"/tag", url.Values{"repo": {name}, "tag": {tag}}, nil, nil, http.StatusCreated)
}

// CreateNetwork makes a network of the engine's usual kind and returns its id.
func (c *Client) CreateNetwork(ctx context.Context, name string) (string, error) {
	var out struct {
		ID string `json:"Id"`
	}
	body := map[string]any{"Name": name, "Driver": "bridge"}
	if err := c.call(ctx, http.MethodPost, "/networks/create", nil, body, &out, http.StatusCreated); err != nil {
		return "", err
	}
	return checked(out.ID)
}

// RemoveNetwork removes a network by its id or name.
func (c *Client) RemoveNetwork(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/networks/"+id, nil, nil, nil, http.StatusNoContent)
}

// Config is a container to be made.
type Config struct {
	Image      string
	Entrypoint []string // nil is the image's
	Cmd        []string // nil is the image's, where Entrypoint is too
	Env        []string // NAME=value
	WorkingDir string
	Binds      []string // source:target[:ro]
	Network    string   // "" is the engine's default
}

// Create makes a container, which does not run yet, and returns its id.
func (c *Client) Create(ctx context.Context, name string, config Config) (string, error) {
	host := map[string]any{"Binds": config.Binds}
	if config.Network != "" {
		host["NetworkMode"] = config.Network
	}
	body := map[string]any{
		"Image": config.Image, "Env": config.Env, "WorkingDir": config.WorkingDir, "HostConfig": host,
		"AttachStdout": true, "AttachStderr": true,
	}
	if config.Entrypoint != nil {
		body["Entrypoint"] = config.Entrypoint
	}
	if config.Cmd != nil {
		body["Cmd"] = config.Cmd
	}
	var out struct {
		ID string `json:"Id"`
	}
	if err := c.call(ctx, http.MethodPost, "/containers/create", url.Values{"name": {name}}, body, &out, http.StatusCreated); err != nil {
		return "", err
	}
	return checked(out.ID)
}

// Start starts a container.
func (c *Client) Start(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, "/containers/"+id+"/start", nil, nil, nil, http.StatusNoContent, http.StatusNotModified)
}

// Remove ends a container, if it runs, and removes it with the volumes that are its own.
func (c *Client) Remove(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/containers/"+id, url.Values{"force": {"1"}, "v": {"1"}}, nil, nil, http.StatusNoContent)
}

// Kill sends the container's first process a signal ("SIGINT").
func (c *Client) Kill(ctx context.Context, id, signal string) error {
	return c.call(ctx, http.MethodPost, "/containers/"+id+"/kill", url.Values{"signal": {signal}}, nil, nil, http.StatusNoContent)
}

// Container is what the engine says of one.
type Container struct {
	ID       string
	Running  bool
	Status   string // created, running, exited, …
	ExitCode int    // if it has ended
	Error    string
	Health   string            // starting, healthy, unhealthy; "" has no check
	Env      []string          // that it was made with, its image's included
	Ports    map[string]string // published: "5432" or "53/udp" in the container → the port outside
}

// Inspect says how a container is.
func (c *Client) Inspect(ctx context.Context, id string) (Container, error) {
	var raw struct {
		ID    string `json:"Id"`
		State struct {
			Running  bool
			Status   string
			ExitCode int
			Error    string
			Health   *struct{ Status string }
		}
		Config          struct{ Env []string }
		NetworkSettings struct {
			Ports map[string][]struct{ HostPort string }
		}
	}
	if err := c.call(ctx, http.MethodGet, "/containers/"+id+"/json", nil, nil, &raw, http.StatusOK); err != nil {
		return Container{}, err
	}
	out := Container{ID: raw.ID, Running: raw.State.Running, Status: raw.State.Status, ExitCode: raw.State.ExitCode,
		Error: raw.State.Error[:min(len(raw.State.Error), maxText)], Env: raw.Config.Env, Ports: map[string]string{}}
	if !ValidID(out.ID) || !validExit(out.ExitCode) || len(out.Status) > 32 {
		return Container{}, ErrAnswer
	}
	if h := raw.State.Health; h != nil && h.Status != "none" {
		if out.Health = h.Status; len(out.Health) > 32 {
			return Container{}, ErrAnswer
		}
	}
	for inside, outside := range raw.NetworkSettings.Ports {
		for _, o := range outside {
			port, proto, _ := strings.Cut(inside, "/")
			if !validPort(port) || !validPort(o.HostPort) || len(proto) > 8 {
				return Container{}, ErrAnswer
			}
			if proto != "tcp" && proto != "" {
				port += "/" + proto
			}
			out.Ports[port] = o.HostPort
		}
	}
	return out, nil
}

func validPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

func validExit(code int) bool { return code >= -1 && code <= 255 }

// Logs writes what a container has printed so far, at most max bytes of it.
func (c *Client) Logs(ctx context.Context, id string, max int64, stdout, stderr io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, "/containers/"+id+"/logs", url.Values{"stdout": {"1"}, "stderr": {"1"}}, nil, nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	err = demux(io.LimitReader(resp.Body, max), stdout, stderr)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // cut off
	}
	return err
}

// Attach connects to the output of a container that does not run yet; Copy it once
// it was started.
func (c *Client) Attach(ctx context.Context, id string) (*Output, error) {
	return c.hijack(ctx, "/containers/"+id+"/attach", url.Values{"stream": {"1"}, "stdout": {"1"}, "stderr": {"1"}}, nil)
}

// Wait waits until a container runs no more and returns its exit code.
func (c *Client) Wait(ctx context.Context, id string) (int, error) {
	var out struct {
		StatusCode int
		Error      *struct{ Message string }
	}
	if err := c.call(ctx, http.MethodPost, "/containers/"+id+"/wait", url.Values{"condition": {"not-running"}}, nil, &out, http.StatusOK); err != nil {
		return 0, err
	}
	if !validExit(out.StatusCode) {
		return 0, ErrAnswer
	}
	return out.StatusCode, nil
}

// Exec is a command to run in a container that runs.
type Exec struct {
	Argv []string
	Env  []string // NAME=value, beside what the container has
	Dir  string
	User string // as the engine takes it; empty is the container's
}

// NewExec prepares a command and returns its id.
func (c *Client) NewExec(ctx context.Context, id string, e Exec) (string, error) {
	var out struct {
		ID string `json:"Id"`
	}
	body := map[string]any{"AttachStdout": true, "AttachStderr": true, "Cmd": e.Argv, "Env": e.Env, "WorkingDir": e.Dir, "User": e.User}
	if err := c.call(ctx, http.MethodPost, "/containers/"+id+"/exec", nil, body, &out, http.StatusCreated); err != nil {
		return "", err
	}
	return checked(out.ID)
}

// StartExec starts a prepared command. What keeps it from running at all (no such
// program) comes as its output, and exit code 126 or 127.
func (c *Client) StartExec(ctx context.Context, exec string) (*Output, error) {
	return c.hijack(ctx, "/exec/"+exec+"/start", nil, map[string]any{"Detach": false, "Tty": false})
}

// ExecState is how a command is.
type ExecState struct {
	Running  bool
	ExitCode int // if it has ended
	PID      int // in the machine; 0 before it runs
}

// InspectExec says how a command is.
func (c *Client) InspectExec(ctx context.Context, exec string) (ExecState, error) {
	var raw struct {
		Running  bool
		ExitCode *int
		Pid      int
	}
	if err := c.call(ctx, http.MethodGet, "/exec/"+exec+"/json", nil, nil, &raw, http.StatusOK); err != nil {
		return ExecState{}, err
	}
	s := ExecState{Running: raw.Running || raw.ExitCode == nil, PID: raw.Pid}
	if raw.ExitCode != nil {
		s.ExitCode = *raw.ExitCode
	}
	if !validExit(s.ExitCode) || s.PID < 0 || s.PID > 1<<22 {
		return ExecState{}, ErrAnswer
	}
	return s, nil
}

// Output is what a command or container prints, as it prints it.
type Output struct{ rc io.ReadCloser }

// Copy writes it until its end; an error of a writer, or Close, ends it earlier.
func (o *Output) Copy(stdout, stderr io.Writer) error { return demux(o.rc, stdout, stderr) }

// Close ends the connection, and not what prints.
func (o *Output) Close() { o.rc.Close() }

// hijack opens a connection that is output from its answer on.
func (c *Client) hijack(ctx context.Context, path string, query url.Values, body any) (*Output, error) {
	resp, err := c.do(ctx, http.MethodPost, path, query, body, http.Header{"Connection": {"Upgrade"}, "Upgrade": {"tcp"}}, http.StatusSwitchingProtocols)
	if err != nil {
		return nil, err
	}
	return &Output{resp.Body}, nil
}

// demux takes the engine's frames apart: the stream's number, three zeros, a length of
// four bytes.
func demux(r io.Reader, stdout, stderr io.Writer) error {
	var h [8]byte
	buf := make([]byte, 32<<10)
	for {
		if _, err := io.ReadFull(r, h[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		w := stdout
		switch {
		case h[1] != 0 || h[2] != 0 || h[3] != 0 || h[0] > 3:
			return fmt.Errorf("%w: a frame of no stream", ErrAnswer)
		case h[0] >= 2: // 3 is the engine's own errors
			w = stderr
		}
		for left := int64(binary.BigEndian.Uint32(h[4:])); left > 0; {
			n, err := r.Read(buf[:min(left, int64(len(buf)))])
			if n > 0 {
				if _, err := w.Write(buf[:n]); err != nil {
					return err
				}
				left -= int64(n)
			}
			if err == io.EOF && left > 0 {
				return io.ErrUnexpectedEOF
			}
			if err != nil && err != io.EOF {
				return err
			}
		}
	}
}
