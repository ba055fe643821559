package engine

import (
	"context"
	"path"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
	"github.com/hearth-ci/hearth/internal/mask"
)

// emit sends a record of a step, or of the job if x is nil. Every text in it is
// masked here, so that nothing can be forgotten; text that comes from a stream
// was masked before, which masking again does not change.
func (r *run) emit(x *execution, rec ci.Record) {
	rec.Run = r.job.RunID
	rec.Job = r.job.Plan.ID
	rec.JobKey = r.job.Plan.Key
	if x != nil {
		rec.Step, rec.StepID = x.number, x.record
	}
	r.job.Emit.Emit(r.mask.Record(rec))
}

// clean makes text fit for a record.
func (r *run) clean(s string) string { return r.mask.Field(s) }

// log sends one line of text that was masked already.
func (r *run) log(x *execution, stream, text string) {
	r.logAs(x, "", stream, text)
}

func (r *run) logAs(x *execution, level, stream, text string) {
	rec := ci.Record{Type: ci.LogLine, Level: level, Stream: stream, Text: text, Run: r.job.RunID, Job: r.job.Plan.ID, JobKey: r.job.Plan.Key}
	if x != nil {
		rec.Step, rec.StepID = x.number, x.record
	}
	r.job.Emit.Emit(rec)
}

// system sends lines that are the runner's own.
func (r *run) system(x *execution, text string) {
	r.systemAs(x, "", text)
}

// problem sends lines that say what is wrong: to people as GitHub writes them.
func (r *run) problem(x *execution, level, text string) {
	r.systemAs(x, level, "##["+level+"]"+text)
}

func (r *run) systemAs(x *execution, level, text string) {
	for line := range strings.SplitSeq(r.mask.String(text), "\n") {
		if len(line) > mask.MaxField {
			line = line[:wholeRunes([]byte(line[:mask.MaxField]))] + "…"
		}
		r.logAs(x, level, "system", line)
	}
}

func (r *run) annotate(x *execution, a command.Annotation) {
	// Files are named from the workspace on.
	file := x.paths().outside(a.File)
	if path.IsAbs(file) {
		if rest, ok := strings.CutPrefix(path.Clean(file), r.layout.Workspace+"/"); ok {
			file = rest
		}
	} else if file != "" {
		file = path.Clean(file)
	}
	r.emit(x, ci.Record{
		Type: ci.AnnotationRec, Level: a.Level, Message: a.Message, Title: a.Title, File: file,
		Line: a.Line, EndLine: a.EndLine, Column: a.Column, EndCol: a.EndColumn,
	})
}

// matched is the file that a problem matcher found, as the workspace, or the checkout
// of the run's repository in it, names it; "" if there is no such file there.
func (r *run) matched(ctx context.Context, x *execution, file string) string {
	if file == "" {
		return ""
	}
	file = x.paths().outside(file)
	if !path.IsAbs(file) {
		file = path.Join(r.layout.Workspace, file)
	}
	file = path.Clean(file)
	rest, ok := strings.CutPrefix(file, r.layout.Workspace+"/")
	if !ok {
		return ""
	}
	if st, err := r.job.Guest.Stat(ctx, file); err != nil || st.IsDir() {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, dir := range r.checkouts {
		if in, ok := strings.CutPrefix(file, dir+"/"); ok && len(in) < len(rest) {
			rest = in
		}
	}
	return rest
}

// annotateJob tells of the job itself.
func (r *run) annotateJob(level, message string) {
	r.problem(nil, level, message)
	r.annotate(nil, command.Annotation{Level: level, Message: message})
}
