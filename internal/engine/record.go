package engine

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
	"github.com/hearth-ci/hearth/internal/mask"
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
	r.job.Emit.Emit(Masked(r.mask, rec))
}

// Masked returns rec with every text in it that a job can fill as people see it,
// without secrets, and bounded. What identifies the run and its jobs stays, and so
// do the outputs of a job that has ended, which are its results: none of them is
// handed out that has a secret in it.
func Masked(set *mask.Set, rec ci.Record) ci.Record {
	for _, s := range []*string{&rec.Workflow, &rec.Name, &rec.Command, &rec.Reason, &rec.Text, &rec.Title, &rec.Message, &rec.Hint, &rec.File} {
		*s = clean(set, *s)
	}
	if rec.Matrix != nil {
		if b, err := json.Marshal(rec.Matrix); err == nil && set.Contains(string(b)) {
			rec.Matrix = map[string]string{"matrix": mask.Mark}
		}
	}
	if len(rec.Outputs) > 0 && rec.Type != ci.JobFinished {
		shown := map[string]string{}
		for k, v := range rec.Outputs {
			shown[set.String(k)] = set.String(v)
		}
		rec.Outputs = ci.Brief(shown)
	}
	if c := rec.Connection; c != nil {
		own := *c
		own.Host, own.IP = clean(set, c.Host), clean(set, c.IP)
		rec.Connection = &own
	}
	if p := rec.Prediction; p != nil {
		own := *p
		own.Reasons = slices.Clone(p.Reasons)
		for i, s := range own.Reasons {
			own.Reasons[i] = clean(set, s)
		}
		rec.Prediction = &own
	}
	if e := rec.Explanation; e != nil {
		own := *e
		for _, s := range []*string{&own.Text, &own.FixedBy, &own.Fix, &own.Lesson, &own.Advice} {
			*s = clean(set, *s)
		}
		rec.Explanation = &own
	}
	return rec
}

func (r *run) clean(s string) string { return clean(r.mask, s) }

// clean makes text fit for a record: masked, valid, bounded.
func clean(set *mask.Set, s string) string {
	s = set.String(s)
	if len(s) > maxField {
		s = s[:wholeRunes([]byte(s[:maxField]))] + "…"
	}
	return s
}

// log sends one line of text that was masked already.
func (r *run) log(x *execution, stream, text string) {
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
			line = line[:wholeRunes([]byte(line[:maxField]))] + "…"
		}
		r.log(x, "system", line)
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
