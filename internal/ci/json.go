package ci

import (
	"encoding/json"
	"strconv"
	"time"
)

// AppendJSON appends the record's JSON, as [json.Marshal] makes it, to b. Of a log line it
// costs a fraction of that: they are most of what is ever recorded.
func (r *Record) AppendJSON(b []byte) ([]byte, error) {
	if !r.isLine() {
		line, err := json.Marshal(r)
		return append(b, line...), err
	}
	number := func(key string, n int64) {
		b = append(b, key...)
		b = strconv.AppendInt(b, n, 10)
	}
	word := func(key, s string) {
		if s != "" {
			b = append(b, key...)
			b = appendText(b, s)
		}
	}
	number(`{"v":`, int64(r.V))
	number(`,"seq":`, r.Seq)
	b = append(b, `,"time":"`...)
	b = r.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","type":`...)
	b = appendText(b, string(r.Type))
	b = append(b, `,"run":`...)
	b = appendText(b, r.Run)
	word(`,"job":`, r.Job)
	word(`,"job_key":`, r.JobKey)
	word(`,"name":`, r.Name)
	if r.Matrix != nil {
		m, err := json.Marshal(r.Matrix)
		if err != nil {
			return b, err
		}
		b = append(append(b, `,"matrix":`...), m...)
	}
	if r.Step != 0 {
		number(`,"step":`, int64(r.Step))
	}
	word(`,"step_id":`, r.StepID)
	word(`,"stream":`, r.Stream)
	word(`,"text":`, r.Text)
	word(`,"level":`, r.Level)
	if r.Attempt != 0 {
		number(`,"attempt":`, int64(r.Attempt))
	}
	if r.Sent != 0 {
		number(`,"sent":`, r.Sent)
	}
	return append(b, '}'), nil
}

// isLine says that a record holds what log lines hold and nothing else.
func (r *Record) isLine() bool {
	year := r.Time.Year()
	return year > 0 && year < 10_000 && r.Time.Location() == time.UTC &&
		r.Workflow == "" && r.File == "" && r.Event == "" && r.SHA == "" && r.Ref == "" && r.Jobs == 0 && r.Ran == 0 && r.Needs == nil &&
		r.Command == "" && r.Conclusion == "" && r.Outcome == "" && r.ExitCode == nil && r.DurationMS == nil && r.Reason == "" && !r.Infrastructure && !r.Assisted &&
		r.Title == "" && r.Line == 0 && r.EndLine == 0 && r.Column == 0 && r.EndCol == 0 && r.Message == "" && r.Hint == "" && r.Prediction == nil &&
		r.Explanation == nil && r.Machine == nil && r.Connection == nil && r.Outputs == nil && r.EnvironmentURL == ""
}

// appendText appends a string in quotes.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(s) // of a string, never an error
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
