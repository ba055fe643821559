package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/hearth-ci/hearth/internal/command"
)

// The files through which a step talks back, by name in its own directory.
var commandFiles = [...]string{"env", "output", "path", "state", "summary"}

// put makes the step's command files, empty, and its script, in one exchange.
func (x *execution) put(id, script, content string) error {
	r := x.r
	x.dir = path.Join(r.layout.Temp, "_runner_file_commands", id)
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	rel := "_runner_file_commands/" + id
	t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: rel + "/", Mode: 0o755})
	for _, f := range commandFiles {
		t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: rel + "/" + f, Mode: 0o644})
	}
	if script != "" {
		t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Base(script), Mode: 0o755, Size: int64(len(content))})
		io.WriteString(t, content)
	}
	if err := t.Close(); err != nil {
		return err
	}
	return r.job.Guest.TarIn(x.ctx, r.layout.Temp, &b, "")
}

// maxLeft is the most that is read of all a step's command files together.
const maxLeft = 3*command.MaxFile + 2*command.MaxSummary

// collect reads the step's command files and keeps what they say. It does so also
// after a failure and after a cancellation, so it is not under the step's own
// context.
func (x *execution) collect() error {
	r := x.r
	var left bounded
	left.max = maxLeft
	err := r.job.Guest.TarOut(r.hard, x.dir, []string{"."}, &left)
	switch {
	case left.over:
		x.failed = true
		x.error(fmt.Sprintf("Unable to process file commands successfully: the step left more than %d MiB in them.", maxLeft>>20))
		return nil
	case err != nil && errors.Is(err, fs.ErrNotExist):
		return nil // the job removed them
	case err != nil:
		return err
	}
	files, err := untar(left.Bytes())
	if err != nil {
		return fmt.Errorf("the archive of its command files: %w", err)
	}
	x.takeFiles(files)
	return nil
}

// takeFiles acts on the files in GitHub's order.
func (x *execution) takeFiles(files map[string]string) {
	refuse := func(which string, err error) {
		x.error(fmt.Sprintf("Unable to process file command '%s' successfully.", which))
		x.error(err.Error())
		x.failed = true
	}
	pairs := func(which string, max int) []command.Pair {
		text := files[which]
		if len(text) > max {
			refuse(which, fmt.Errorf("The file has %d bytes; at most %d are read.", len(text), max))
			return nil
		}
		list, err := command.ParsePairs(text)
		if err != nil {
			refuse(which, err)
		}
		return list
	}
	if len(files["path"]) <= command.MaxFile {
		for _, p := range command.ParsePaths(files["path"]) {
			x.addPath(p)
		}
	}
	for _, p := range pairs("env", command.MaxFile) {
		if command.Blocked(p.Key) {
			x.error(fmt.Sprintf("Can't store %s output parameter using '$GITHUB_ENV' command.", p.Key))
			continue
		}
		x.setEnv(p.Key, p.Value)
	}
	for _, p := range pairs("state", command.MaxFile) {
		x.state[p.Key] = p.Value
	}
	for _, p := range pairs("output", command.MaxFile) {
		x.setOutput(p.Key, p.Value)
	}
	switch s := files["summary"]; {
	case len(s) > command.MaxSummary:
		x.error(fmt.Sprintf("$GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of %dk, got %dk. For more information see: https://docs.github.com/actions/using-workflows/workflow-commands-for-github-actions#adding-a-markdown-summary", command.MaxSummary>>10, len(s)>>10))
	case s != "":
		x.summary = x.r.mask.String(strings.ToValidUTF8(s, "\ufffd"))
	}
}

// bounded is a buffer that refuses more than max bytes.
type bounded struct {
	bytes.Buffer
	max  int
	over bool
}

var errBound = errors.New("more than was allowed")

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.max {
		b.over = true
		return 0, errBound
	}
	return b.Buffer.Write(p)
}

// untar reads the command files out of an archive that a guest made; anything
// else in it is ignored.
func untar(b []byte) (map[string]string, error) {
	out := map[string]string{}
	t := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := t.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		for _, f := range commandFiles {
			if name == f && h.Typeflag == tar.TypeReg {
				data, err := io.ReadAll(t)
				if err != nil {
					return nil, err
				}
				out[f] = string(data)
			}
		}
	}
}

func (x *execution) setOutput(name, value string) { x.outputs.set(name, value) }

// What a step sets for others holds once it has ended, so that an attempt that is
// not the last leaves nothing.
func (x *execution) setEnv(name, value string) { x.newEnv.set(name, value) }

func (x *execution) addPath(p string) { x.newPaths = append(x.newPaths, p) }

// commit hands on what the step set.
func (x *execution) commit() {
	for _, k := range x.newEnv.keys {
		x.sc.env.set(k, x.newEnv.m[k])
	}
	for _, p := range x.newPaths {
		x.sc.env.addPath(p)
	}
	if x.summary != "" {
		x.r.mu.Lock()
		x.r.summary[x.number] += x.summary
		x.r.mu.Unlock()
	}
	x.newEnv, x.newPaths, x.summary = vars{}, nil, ""
}

// setMatchers carries out add-matcher and remove-matcher.
func (x *execution) setMatchers(e command.Effect) {
	r := x.r
	if e.Name != "" {
		r.matchers.Remove(e.Name)
		return
	}
	file := e.Value
	if !path.IsAbs(file) {
		file = path.Join(r.layout.Workspace, file)
	}
	warn := func(err error) {
		x.say("warning", fmt.Sprintf("%s: problem matcher %s: %s", e.Kind, file, guestText(err)))
	}
	ctx := x.ctx
	if ctx == nil {
		ctx = context.WithoutCancel(r.hard)
	}
	data, err := r.job.Guest.ReadFile(ctx, file, command.MaxMatcherFile)
	if err != nil {
		warn(err)
		return
	}
	list, err := r.matchers.Load(data)
	if err != nil {
		warn(err)
		return
	}
	if e.Kind == command.RemoveMatcher {
		for _, m := range list {
			r.matchers.Remove(m.Owner)
		}
		return
	}
	if err := r.matchers.Add(list); err != nil {
		warn(err)
	}
}
