package engine

import (
	"path"
	"strings"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
)

// maxField bounds the text fields of a record that a step can fill.
const maxField = 64 << 10

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
	for _, s := range []*string{&rec.Name, &rec.Command, &rec.Reason, &rec.Text, &rec.Title, &rec.Message, &rec.File} {
		*s = r.clean(*s)
	}
	for k, v := range rec.Outputs {
		if c := r.clean(v); c != v {
			rec.Outputs[k] = c
		}
	}
	r.job.Emit.Emit(rec)
}

// clean makes text fit for a record: masked, valid, bounded.
func (r *run) clean(s string) string {
	s = r.mask.String(s)
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\ufffd")
	}
	if len(s) > maxField {
		s = s[:wholeRunes([]byte(s[:maxField]))] + "…"
	}
	return s
}

// log sends one line of text that was masked already.
func (r *run) log(x *execution, stream, text string) {
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\ufffd")
	}
	rec := ci.Record{Type: ci.LogLine, Stream: stream, Text: text, Run: r.job.RunID, Job: r.job.Plan.ID, JobKey: r.job.Plan.Key}
	if x != nil {
		rec.Step, rec.StepID = x.number, x.record
	}
	r.job.Emit.Emit(rec)
}

// system sends lines that are the runner's own.
func (r *run) system(x *execution, text string) {
	for line := range strings.SplitSeq(r.mask.String(text), "\n") {
		if len(line) > maxField {
			line = line[:maxField] + "…"
		}
		r.log(x, "system", strings.TrimSuffix(line, "\r"))
	}
}

func (r *run) annotate(x *execution, a command.Annotation) {
	// Files are named from the workspace on.
	file := a.File
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

// annotateJob tells of the job itself.
func (r *run) annotateJob(level, message string) {
	r.system(nil, "##["+level+"]"+message)
	r.annotate(nil, command.Annotation{Level: level, Message: message})
}
