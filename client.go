package hearth

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/session"
)

// Client is a server's machines and memory, over its HTTP API (docs/api.md): what a
// Host is on this machine. It is a Provider, so that Sessions and an Executor run in
// the server's machines as they do in a Host's, and a Memory.
//
//	sessions := hearth.NewSessions(hearth.NewClient("https://ci.example.org", hearth.WithAuth(token)), 0, 4)
//
// What the API cannot do the machines cannot: output comes when a command has ended, as
// text, of a stream the first and last half mebibyte (Exit.Truncated); standard
// input has 512 KiB at most. Another user than the runner takes sudo in the machine.
type Client struct {
	url   string
	token string
	http  *http.Client
}

// ClientOption is an option of NewClient.
type ClientOption func(*Client)

// WithAuth gives the bearer token that the server asks for: `hearth token` makes one.
func WithAuth(token string) ClientOption { return func(c *Client) { c.token = token } }

// WithHTTPClient has requests made by another client than the default one, whose
// timeout must not be shorter than commands may take.
func WithHTTPClient(h *http.Client) ClientOption { return func(c *Client) { c.http = h } }

// NewClient returns a client of the server at a URL. Nothing is asked of it yet.
func NewClient(url string, options ...ClientOption) *Client {
	c := &Client{url: strings.TrimRight(url, "/"), http: http.DefaultClient}
	for _, o := range options {
		o(c)
	}
	return c
}

// ServerError is an answer of a server that says what is wrong.
type ServerError struct {
	Status  int    `json:"-"`     // of HTTP
	Message string `json:"error"` // what happened
	Code    string `json:"code"`  // a word for programs: docs/api.md lists them
	Hint    string `json:"hint"`  // what to do

	after time.Duration // when to ask again
}

func (e *ServerError) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " (" + e.Hint + ")"
}

// most bounds an answer, in bytes: that of a program has two streams of a mebibyte,
// each byte of which may be six of JSON.
const mostAnswer = 16 << 20

// call sends a request and decodes the answer into a value; nil takes any.
func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, in)
	if err != nil {
		return fmt.Errorf("hearth: %w", err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("hearth: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	if err != nil {
		return fmt.Errorf("hearth: the answer of %s: %w", c.url, err)
	}
	if resp.StatusCode/100 != 2 {
		e := &ServerError{Status: resp.StatusCode}
		if json.Unmarshal(b, e) != nil || e.Message == "" {
			e.Message = fmt.Sprintf("%s answers %s", c.url, resp.Status)
		}
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
			e.after = time.Duration(n) * time.Second
		}
		return e
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("hearth: the answer of %s: %w", c.url, err)
	}
	return nil
}

// Machine implements Provider. It waits for room as long as ctx allows.
func (c *Client) Machine(ctx context.Context, deadline time.Time) (Machine, error) {
	for {
		var vm struct {
			ID string `json:"id"`
		}
		ttl := min(max(time.Until(deadline), time.Second), session.MaxTTL)
		err := c.call(ctx, "POST", "/api/vms", map[string]any{"name": "library", "ttl_seconds": ttl.Seconds()}, &vm)
		var e *ServerError
		switch {
		case errors.As(err, &e) && e.Code == "busy":
		case err != nil:
			return nil, err
		case vm.ID == "":
			return nil, fmt.Errorf("hearth: %s is no Hearth: its machine has no id", c.url)
		default:
			return &remote{client: c, id: vm.ID, deadline: deadline, lost: make(chan struct{})}, nil
		}
		select {
		case <-time.After(max(e.after, time.Second)):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// remote is a machine of a server.
type remote struct {
	client   *Client
	id       string
	deadline time.Time

	mu   sync.Mutex
	lost chan struct{} // closed once a call has found out
	err  error
}

func (m *remote) ID() string            { return m.id }
func (m *remote) Lost() <-chan struct{} { return m.lost }

func (m *remote) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// call is the client's; that the machine is gone is remembered.
func (m *remote) call(ctx context.Context, method, path string, body, into any) error {
	err := m.client.call(ctx, method, path, body, into)
	var e *ServerError
	if errors.As(err, &e) && slices.Contains([]string{"vm_gone", "vm_lost", "no_such_vm"}, e.Code) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.err == nil {
			m.err = err
			close(m.lost)
		}
	}
	return err
}

const (
	maxInput = 512 << 10 // of standard input, and of each piece of an archive; base64 of it fits a request
	maxPiece = 256 << 10 // of an archive that comes, so that base64 of it is not cut
)

// execution is the part of an answer that counts here.
type execution struct {
	ExitCode    int                  `json:"exit_code"`
	Stdout      string               `json:"stdout"`
	Stderr      string               `json:"stderr"`
	DurationMS  int64                `json:"duration_ms"`
	TimedOut    bool                 `json:"timed_out"`
	Truncated   bool                 `json:"truncated"`
	Prediction  *history.Expectation `json:"prediction"`
	Explanation *Explanation         `json:"explanation"`
}

func (m *remote) Exec(ctx context.Context, cmd Command) (Exit, error) {
	body, err := m.request(cmd)
	if err != nil {
		return Exit{}, err
	}
	began := time.Now()
	var x execution
	if err := m.call(ctx, "POST", "/api/llm/execute", body, &x); err != nil {
		if ctx.Err() != nil && m.Err() == nil {
			return Exit{Code: -1, Cancelled: true, Duration: time.Since(began)}, nil // the server ends it
		}
		return Exit{}, err
	}
	for _, s := range []struct {
		to   io.Writer
		text string
	}{{cmd.Stdout, x.Stdout}, {cmd.Stderr, x.Stderr}} {
		if s.to != nil && s.text != "" {
			if _, err := io.WriteString(s.to, s.text); err != nil {
				return Exit{}, fmt.Errorf("writing the command's output: %w", err)
			}
		}
	}
	end := Exit{Code: x.ExitCode, TimedOut: x.TimedOut, Truncated: x.Truncated, Duration: time.Duration(x.DurationMS) * time.Millisecond,
		Explanation: x.Explanation}
	if x.Prediction != nil {
		end.Expected = &x.Prediction.Prediction
	}
	return end, nil
}

// request is a command as the API takes it: a script that runs it.
func (m *remote) request(cmd Command) (map[string]any, error) {
	if len(cmd.Argv) == 0 {
		return nil, errors.New("hearth: there is no command")
	}
	env, secrets := map[string]string{}, map[string]string{}
	named := map[string]bool{}
	for _, kv := range cmd.Env {
		k, v, _ := strings.Cut(kv, "=")
		delete(env, k)
		delete(secrets, k)
		if slices.Contains(cmd.Secrets, v) {
			secrets[k], named[v] = v, true
		} else {
			env[k] = v
		}
	}
	// The API knows of secrets by their variables: of what else is one nothing is learned.
	learn := !cmd.NoLearn && !slices.ContainsFunc(cmd.Secrets, func(s string) bool { return !named[s] })
	argv := slices.Clone(cmd.Argv)
	if cmd.User != "" && cmd.User != "runner" {
		given := []string{"PATH=" + guest.ToolPath}
		argv = slices.Concat([]string{"sudo", "-n", "-u", cmd.User, "--", "env"}, given, cmd.Env, argv)
	}
	code := history.Quote(argv)
	if cmd.Stdin != nil {
		in, err := io.ReadAll(io.LimitReader(cmd.Stdin, maxInput+1))
		if err != nil {
			return nil, fmt.Errorf("the command's standard input: %w", err)
		}
		if len(in) > maxInput {
			return nil, fmt.Errorf("hearth: over the API a command's standard input has %d KiB at most", maxInput>>10)
		}
		code = code + " < <(base64 -d <<'HEARTH'\n" + base64.StdEncoding.EncodeToString(in) + "\nHEARTH\n)"
	}
	timeout := cmd.Timeout
	if timeout <= 0 {
		timeout = time.Until(m.deadline)
	}
	body := map[string]any{"language": "bash", "code": code, "vm_id": m.id, "env": env, "secrets": secrets, "learn": learn,
		"timeout_seconds": min(max(timeout, time.Millisecond), session.MaxTTL).Seconds()}
	if cmd.Dir != "" {
		body["working_dir"] = guest.InHome(cmd.Dir)
	}
	return body, nil
}

// script runs a script of ours, from which nobody learns, and returns what it prints.
func (m *remote) script(ctx context.Context, code string, args ...string) (string, error) {
	var out, said strings.Builder
	end, err := m.Exec(ctx, Command{Argv: slices.Concat([]string{"bash", "-ec", code, "bash"}, args), NoLearn: true, Stdout: &out, Stderr: &said,
		Timeout: 10 * time.Minute})
	switch {
	case err != nil:
		return "", err
	case end.Cancelled:
		return "", context.Cause(ctx)
	case end.Code != 0 || end.TimedOut || end.Truncated:
		return "", fmt.Errorf("hearth: in the machine %s: exit code %d: %.500q", m.id, end.Code, said.String())
	}
	return out.String(), nil
}

// Unpack sends the archive in pieces.
func (m *remote) Unpack(ctx context.Context, dir string, r io.Reader) error {
	file, err := m.script(ctx, `mktemp`)
	if err != nil {
		return err
	}
	file = strings.TrimSpace(file)
	defer m.script(context.WithoutCancel(ctx), `rm -f -- "$1"`, file)
	buf := make([]byte, maxInput)
	for {
		n, rerr := io.ReadFull(r, buf)
		if n > 0 {
			end, err := m.Exec(ctx, Command{Argv: []string{"sh", "-c", `cat >> "$1"`, "sh", file}, Stdin: bytes.NewReader(buf[:n]),
				NoLearn: true, Timeout: 10 * time.Minute})
			if err != nil {
				return err
			}
			if end.Code != 0 || end.Cancelled {
				return cmp.Or(context.Cause(ctx), fmt.Errorf("hearth: a piece of the archive: exit code %d", end.Code))
			}
		}
		switch rerr {
		case nil:
			continue
		case io.EOF, io.ErrUnexpectedEOF:
			_, err = m.script(ctx, `mkdir -p -- "$2"; tar -xf "$1" -C "$2"`, file, path.Clean(guest.InHome(dir)))
			return err
		}
		return rerr
	}
}

// Pack fetches the archive in pieces.
func (m *remote) Pack(ctx context.Context, dir string, paths []string, w io.Writer) error {
	said, err := m.script(ctx, `f=$(mktemp); d=$1; shift; tar -cf "$f" -C "$d" -- "$@"; stat -c '%s %n' "$f"`, append([]string{guest.InHome(dir)}, paths...)...)
	if err != nil {
		return err
	}
	size, file, _ := strings.Cut(strings.TrimSpace(said), " ")
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || !strings.HasPrefix(file, "/tmp/") {
		return fmt.Errorf("hearth: the machine %s says %.100q of an archive", m.id, said)
	}
	defer m.script(context.WithoutCancel(ctx), `rm -f -- "$1"`, file)
	for at := int64(0); at < n; at += maxPiece {
		text, err := m.script(ctx, `tail -c "+$2" -- "$1" | head -c "$3" | base64 -w0`, file, strconv.FormatInt(at+1, 10), strconv.Itoa(maxPiece))
		if err != nil {
			return err
		}
		piece, err := base64.StdEncoding.DecodeString(text)
		if err != nil || int64(len(piece)) != min(maxPiece, n-at) {
			return fmt.Errorf("hearth: the machine %s sends %d bytes of an archive where %d were to come", m.id, len(piece), min(maxPiece, n-at))
		}
		if _, err := w.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

func (m *remote) Snapshot(ctx context.Context) (string, error) {
	var s struct {
		Name string `json:"name"`
	}
	err := m.call(ctx, "POST", "/api/vms/"+url.PathEscape(m.id)+"/snapshots", map[string]string{}, &s)
	return s.Name, err
}

func (m *remote) Rollback(ctx context.Context, name string) error {
	return m.call(ctx, "POST", "/api/vms/"+url.PathEscape(m.id)+"/rollback", map[string]string{"snapshot_id": name}, nil)
}

// Close ends the machine; one that is gone has ended.
func (m *remote) Close(ctx context.Context) error {
	err := m.client.call(ctx, "DELETE", "/api/vms/"+url.PathEscape(m.id), nil, nil)
	var e *ServerError
	if errors.As(err, &e) && (e.Code == "vm_gone" || e.Code == "no_such_vm") {
		return nil
	}
	return err
}

// ask asks the server's memory.
func (c *Client) ask(ctx context.Context, what, repository, command string, n int, into any) error {
	q := url.Values{}
	for k, v := range map[string]string{"repository": repository, "command": command} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if n > 0 {
		q.Set("limit", strconv.Itoa(n))
	}
	return c.call(ctx, "GET", "/api/v1/learn/"+what+"?"+q.Encode(), nil, into)
}

// Predict implements Memory.
func (c *Client) Predict(ctx context.Context, repository, command string) (f Forecast, err error) {
	err = c.ask(ctx, "predict", repository, command, 0, &f)
	return f, err
}

// Related implements Memory.
func (c *Client) Related(ctx context.Context, repository, command string, n int) ([]Match, error) {
	var a struct {
		Matches []Match `json:"matches"`
	}
	err := c.ask(ctx, "related", repository, command, n, &a)
	return a.Matches, err
}

// Next implements Memory.
func (c *Client) Next(ctx context.Context, repository, command string, n int) ([]Match, error) {
	var a struct {
		Matches []Match `json:"matches"`
	}
	err := c.ask(ctx, "next", repository, command, n, &a)
	return a.Matches, err
}

// Lessons implements Memory.
func (c *Client) Lessons(ctx context.Context, repository string) ([]Lesson, error) {
	var a struct {
		Lessons []Lesson `json:"lessons"`
	}
	err := c.ask(ctx, "lessons", repository, "", 0, &a)
	return a.Lessons, err
}

// Counts implements Memory.
func (c *Client) Counts(ctx context.Context, repository string) ([]Counts, error) {
	var a struct {
		Counts []Counts `json:"counts"`
	}
	err := c.ask(ctx, "stats", repository, "", 0, &a)
	return a.Counts, err
}
