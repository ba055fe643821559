package mask

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
)

// MaxField bounds the texts of a record that a job can fill, in bytes.
const MaxField = 64 << 10

// Field is [Set.String] for a text of a record: bounded.
func (s *Set) Field(text string) string {
	text = s.String(text)
	if len(text) > MaxField {
		text = strings.ToValidUTF8(text[:MaxField], "") + "…"
	}
	return text
}

// Record returns rec with every text in it that a job, a workflow or a repository
// can fill as people see it, without secrets, and bounded. What identifies the run
// and its jobs stays, and so do the outputs of a job that has ended, which are its
// results: none of them is handed out that has a secret in it.
func (s *Set) Record(rec ci.Record) ci.Record {
	fields := []*string{&rec.Workflow, &rec.Name, &rec.Command, &rec.Reason, &rec.Title, &rec.Message, &rec.Hint, &rec.File, &rec.EnvironmentURL}
	if rec.Type == ci.SummaryRec {
		// It is a document; whoever collects it has bounded it.
		if rec.Text = s.String(rec.Text); len(rec.Text) > ci.MaxSummary {
			rec.Text = strings.ToValidUTF8(rec.Text[:ci.MaxSummary], "")
		}
	} else {
		fields = append(fields, &rec.Text)
	}
	if c := rec.Connection; c != nil {
		own := *c
		rec.Connection = &own
		fields = append(fields, &own.Host, &own.IP)
	}
	if p := rec.Prediction; p != nil {
		own := *p
		own.Reasons = slices.Clone(p.Reasons)
		rec.Prediction = &own
		for i := range own.Reasons {
			fields = append(fields, &own.Reasons[i])
		}
	}
	if e := rec.Explanation; e != nil {
		own := *e
		rec.Explanation = &own
		fields = append(fields, &own.Text, &own.FixedBy, &own.Fix, &own.Lesson, &own.Advice)
		own.Lines = slices.Clone(e.Lines)
		for i := range own.Lines {
			fields = append(fields, &own.Lines[i])
		}
		fields = append(fields, &own.Since)
		own.Suspects = slices.Clone(e.Suspects)
		for i := range own.Suspects {
			fields = append(fields, &own.Suspects[i].Kind, &own.Suspects[i].Name, &own.Suspects[i].Why)
		}
		own.Tests = slices.Clone(e.Tests)
		for i := range own.Tests {
			fields = append(fields, &own.Tests[i].Name, &own.Tests[i].Message, &own.Tests[i].Note)
		}
	}
	for _, f := range fields {
		*f = s.Field(*f)
	}
	if rec.Matrix != nil {
		rec.Matrix = s.tree(rec.Matrix)
	}
	if len(rec.Outputs) > 0 && rec.Type != ci.JobFinished {
		shown := map[string]string{}
		for k, v := range rec.Outputs {
			shown[s.String(k)] = s.String(v)
		}
		rec.Outputs = ci.Brief(shown)
	}
	return rec
}

// tree masks the strings of what JSON can hold. What has nothing to mask stays as it is.
func (s *Set) tree(v any) any {
	var tree any
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &tree)
	}
	if err != nil {
		return Mark
	}
	changed := false
	field := func(text string) string {
		masked := s.Field(text)
		changed = changed || masked != text
		return masked
	}
	var walk func(any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case string:
			return field(v)
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		case map[string]any:
			out := make(map[string]any, len(v))
			for k, e := range v {
				out[field(k)] = walk(e)
			}
			return out
		case float64:
			if n := strconv.FormatFloat(v, 'f', -1, 64); field(n) != n {
				return Mark
			}
		}
		return v
	}
	if tree = walk(tree); changed {
		return tree
	}
	return v
}
