package engine

//lint:file-ignore ST1005 these errors are worded as GitHub words them

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/ci"
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
	now := time.Now().Truncate(time.Second) // programs look at times: make, find -mmin, caches
	rel := "_runner_file_commands/" + id
	t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: rel + "/", Mode: 0o755, ModTime: now})
	for _, f := range commandFiles {
		t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: rel + "/" + f, Mode: 0o644, ModTime: now})
	}
	if script != "" {
		t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Base(script), Mode: 0o755, Size: int64(len(content)), ModTime: now})
		io.WriteString(t, content)
	}
	if err := t.Close(); err != nil {
		return err
	}
	return r.job.Guest.TarIn(x.ctx, r.layout.Temp, &b, "")
}

// maxFile is the most that a command file may hold.
func maxFile(name string) int64 {
	switch name {
	case "output":
		return command.MaxOutputFile
	case "summary":
		return ci.MaxSummary
	}
	return command.MaxFile
}

// collect reads the step's command files and keeps what they say. It does so also
// after a failure and after a cancellation, so it is not under the step's own
// context.
func (x *execution) collect() error {
	r := x.r
	pr, pw := io.Pipe()
	var files map[string]string
	var unread error
	done := make(chan struct{})
	go func() {
		defer close(done)
		files, unread = untar(pr)
		pr.CloseWithError(cmp.Or(unread, errEnough))
	}()
	err := r.job.Guest.TarOut(r.hard, x.dir, []string{"."}, pw)
	pw.CloseWithError(cmp.Or(err, io.EOF))
	<-done
	if large, ok := errors.AsType[*tooLarge](unread); ok {
		if large.name != "summary" {
			x.refuse(large.name, large)
			return nil
		}
		// As on GitHub the step goes on without a summary.
		x.error(fmt.Sprintf("$GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of %dk, got %dk. For more information see: https://docs.github.com/actions/using-workflows/workflow-commands-for-github-actions#adding-a-markdown-summary", ci.MaxSummary>>10, large.size>>10))
		err, unread = nil, nil
	}
	switch {
	case err != nil && errors.Is(err, fs.ErrNotExist):
		return nil // the job removed them
	case err != nil && !errors.Is(err, errEnough):
		return err
	case unread != nil:
		return fmt.Errorf("the archive of its command files: %w", unread)
	}
	x.takeFiles(files)
	return nil
}

// refuse fails the step for what it left in a command file.
func (x *execution) refuse(which string, err error) {
	x.error(fmt.Sprintf("Unable to process file command '%s' successfully.", which))
	x.error(err.Error())
	x.failed = true
}

// takeFiles acts on the files in GitHub's order.
func (x *execution) takeFiles(files map[string]string) {
	pairs := func(which string) []command.Pair {
		list, err := command.ParsePairs(files[which])
		if err != nil {
			x.refuse(which, err)
		}
		return list
	}
	for _, p := range command.ParsePaths(files["path"]) {
		x.addPath(p)
	}
	for _, p := range pairs("env") {
		if command.Blocked(p.Key) {
			x.error(fmt.Sprintf("Can't store %s output parameter using '$GITHUB_ENV' command.", p.Key))
			continue
		}
		x.setEnv(p.Key, p.Value)
	}
	for _, p := range pairs("state") {
		x.saveState(p.Key, p.Value)
	}
	for _, p := range pairs("output") {
		x.setOutput(p.Key, p.Value)
	}
	if s := files["summary"]; s != "" {
		x.summary = x.r.mask.String(s)
	}
}

// errEnough ends an archive of which nothing more is wanted.
var errEnough = errors.New("nothing more of the archive is read")

// tooLarge says that a step left more in a command file than it may.
type tooLarge struct {
	name string
	size int64
}

func (e *tooLarge) Error() string {
	return fmt.Sprintf("The file that GITHUB_%s names has %d bytes; at most %d are possible.", strings.ToUpper(e.name), e.size, maxFile(e.name))
}

// maxCommandFiles bounds what is looked at beside them.
const maxCommandFiles = 10_000

// untar reads the command files out of an archive that a guest made; anything
// else in it is ignored.
func untar(r io.Reader) (map[string]string, error) {
	out := map[string]string{}
	return out, archive.Each(r, archive.Limits{Entries: maxCommandFiles}, func(h *tar.Header, r io.Reader) error {
		f := path.Clean(h.Name)
		if !slices.Contains(commandFiles[:], f) || h.Typeflag != tar.TypeReg {
			return nil
		}
		if h.Size > maxFile(f) {
			return &tooLarge{f, h.Size}
		}
		data := make([]byte, h.Size)
		_, err := io.ReadFull(r, data)
		out[f] = string(data)
		return err
	})
}

// maxKept bounds what the steps of a job may set for those after them, in all:
// outputs, state, variables.
const maxKept = 50 << 20

// keep reports whether a value of at most so many bytes can be kept, and fails the
// step if not.
func (x *execution) keep(what, name, value string, most int) bool {
	if len(value) > most {
		x.failed = true
		x.error(fmt.Sprintf("The %s '%s' has %d bytes; at most %d are possible.", what, shortName(name), len(value), most))
		return false
	}
	r := x.r
	r.mu.Lock()
	r.kept += len(name) + len(value)
	over := r.kept > maxKept
	r.mu.Unlock()
	if over {
		x.failed = true
		x.error(fmt.Sprintf("The %s '%s' is too much: the steps of a job may set at most %d MiB of outputs, state and environment in all.", what, shortName(name),
			maxKept>>20))
	}
	return !over
}

// shortName is a name that a step chose, for a sentence.
func shortName(s string) string {
	if len(s) > 100 {
		s = strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}

func (x *execution) setOutput(name, value string) {
	if x.keep("output", name, value, ci.MaxOutput) {
		x.outputs.set(name, value)
	}
}

func (x *execution) saveState(name, value string) {
	if x.keep("state", name, value, command.MaxVariable-len("STATE_=")-len(name)) {
		x.state[name] = value
	}
}

// What a step sets for others holds once it has ended, so that an attempt that is
// not the last leaves nothing.
func (x *execution) setEnv(name, value string) {
	if x.keep("environment variable", name, value, command.MaxVariable-len("=")-len(name)) {
		x.newEnv.set(name, value)
	}
}

func (x *execution) addPath(p string) {
	if x.keep("path", p, p, command.MaxVariable-len("PATH=")) {
		x.newPaths = append(x.newPaths, p)
	}
}

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
		x.r.kept += len(x.summary)
		kept := x.r.kept <= maxKept
		if kept {
			x.r.summary[x.number] += x.summary
		}
		x.r.mu.Unlock()
		if kept {
			x.r.emit(x, ci.Record{Type: ci.SummaryRec, Text: x.summary})
		}
	}
	x.newEnv, x.newPaths, x.summary = vars{}, nil, ""
}

// setMatchers carries out add-matcher and remove-matcher.
func (x *execution) setMatchers(e command.Effect) {
	r := x.r
	remove := func(owner string) {
		r.matchers.Remove(owner)
		r.rematched(matcherChange{Remove: owner})
	}
	if e.Name != "" {
		remove(e.Name)
		return
	}
	file := x.paths().outside(e.Value)
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
			remove(m.Owner)
		}
		return
	}
	if err := r.addMatchers(list, data); err != nil {
		warn(err)
	}
}
