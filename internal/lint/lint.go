// Package lint says what is wrong with workflow files, and what would be better.
//
// Two kinds of findings, never mixed. An error is what GitHub refuses the file
// for: it comes from package workflow, which reads files as GitHub does, and it
// alone decides the exit code. Advice (advice.go) is what GitHub accepts and what
// costs people time or safety: unpinned actions, untrusted text in scripts,
// permissions nobody uses, conditions that are never true. Every finding has a
// position, the offending line, usually a hint, and the id of its rule.
//
// [Files] reads, [Report.Write] prints: text for people and editors, JSON, or
// SARIF 2.1.0 for code scanning. Nothing here touches the network: a call of a
// workflow in another repository is taken on trust, one in the same repository is
// followed when the file is there.
package lint

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// Options says how to lint.
type Options struct {
	// NoAdvice leaves advice out.
	NoAdvice bool
	// Read is how files are read; the zero value is how GitHub reads them.
	Read workflow.Options
}

// Report is the result of linting.
type Report struct {
	// Files are the files read, in order.
	Files []string
	// Diagnostics are ordered by file and position.
	Diagnostics []workflow.Diagnostic

	sources map[string][]byte
}

// Invalid reports whether GitHub would refuse a file.
func (r *Report) Invalid() bool { return workflow.Errors(r.Diagnostics) }

// ExitCode is 0 when GitHub would take the files, 2 when not.
func (r *Report) ExitCode() int {
	if r.Invalid() {
		return 2
	}
	return 0
}

// Files lints files and directories; a directory stands for its own *.yml and
// *.yaml, as GitHub reads .github/workflows. With no paths it lints
// .github/workflows. An error means that something could not be read, or that
// there was nothing to read.
func Files(paths []string, opt Options) (*Report, error) {
	if len(paths) == 0 {
		paths = []string{filepath.Join(".github", "workflows")}
	}
	r := &Report{sources: map[string][]byte{}}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("lint: %w", err)
		}
		if !info.IsDir() {
			r.Files = append(r.Files, p)
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			return nil, fmt.Errorf("lint: %w", err)
		}
		before := len(r.Files)
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yml" || ext == ".yaml") {
				r.Files = append(r.Files, filepath.Join(p, e.Name()))
			}
		}
		if len(r.Files) == before {
			return nil, fmt.Errorf("lint: %s holds no *.yml or *.yaml file", p)
		}
	}
	seen := map[string]bool{}
	r.Files = slices.DeleteFunc(r.Files, func(f string) bool {
		dup := seen[f]
		seen[f] = true
		return dup
	})
	for _, f := range r.Files {
		src, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("lint: %w", err)
		}
		r.add(f, src, opt)
	}
	r.finish()
	return r, nil
}

// Source lints one file that is at hand. name is what diagnostics call it.
func Source(name string, src []byte, opt Options) *Report {
	r := &Report{Files: []string{name}, sources: map[string][]byte{}}
	r.add(name, src, opt)
	r.finish()
	return r
}

func (r *Report) add(file string, src []byte, opt Options) {
	r.sources[file] = src
	read := opt.Read
	read.Placeholders = true // GitHub offers such files as they are
	w, diags := workflow.Parse(file, src, read)
	if w != nil && !workflow.Errors(diags) {
		diags = append(diags, workflow.Link(w, r.local(file), read)...)
		if !opt.NoAdvice {
			diags = append(diags, advise(w, src)...)
		}
	}
	for _, d := range diags {
		if d.Severity == workflow.Error || !opt.NoAdvice {
			r.Diagnostics = append(r.Diagnostics, d)
		}
	}
}

// local loads called workflows of the repository that file is in: the folder that
// holds .github. Other calls are not followed, and neither are those of files
// that stand alone.
func (r *Report) local(file string) workflow.Load {
	root := "."
	if dir := filepath.ToSlash(filepath.Dir(file)); dir == ".github/workflows" || strings.HasSuffix(dir, "/.github/workflows") {
		root = filepath.FromSlash(strings.TrimSuffix(strings.TrimSuffix(dir, ".github/workflows"), "/"))
		if root == "" {
			root = "."
			if filepath.IsAbs(file) {
				root = string(filepath.Separator)
			}
		}
	} else {
		return func(string, *workflow.Workflow) (string, []byte, error) { return "", nil, workflow.ErrSkip }
	}
	return func(uses string, _ *workflow.Workflow) (string, []byte, error) {
		path, ok := strings.CutPrefix(uses, "./")
		if !ok {
			path, ok = strings.CutPrefix(uses, "$/")
		}
		if !ok || !filepath.IsLocal(filepath.FromSlash(path)) {
			return "", nil, workflow.ErrSkip
		}
		name := filepath.Join(root, filepath.FromSlash(path))
		src, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil, workflow.ErrSkip // the author may have given us one file of many
		}
		if err != nil {
			return "", nil, err
		}
		if _, ok := r.sources[name]; !ok {
			r.sources[name] = src
		}
		return name, src, nil
	}
}

// finish orders findings and drops repeated ones: a called workflow's own errors
// are found with each of its callers.
func (r *Report) finish() {
	order := map[string]int{}
	for i, f := range r.Files {
		order[f] = i
	}
	at := func(d workflow.Diagnostic) int {
		if i, ok := order[d.File]; ok {
			return i
		}
		return len(order)
	}
	slices.SortStableFunc(r.Diagnostics, func(a, b workflow.Diagnostic) int {
		return cmp.Or(cmp.Compare(at(a), at(b)), cmp.Compare(a.File, b.File),
			cmp.Compare(place(a).Line, place(b).Line), cmp.Compare(place(a).Col, place(b).Col))
	})
	type id struct {
		file, msg string
		pos       workflow.Pos
	}
	seen := map[id]bool{}
	r.Diagnostics = slices.DeleteFunc(r.Diagnostics, func(d workflow.Diagnostic) bool {
		k := id{d.File, d.Message, place(d)}
		dup := seen[k]
		seen[k] = true
		return dup
	})
}

// place is where GitHub sees d, or, where GitHub names only the file, where to
// look.
func place(d workflow.Diagnostic) workflow.Pos {
	if d.Pos.IsZero() {
		return d.Near
	}
	return d.Pos
}
