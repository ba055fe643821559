package store_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

func TestLogFind(t *testing.T) {
	s, _ := open(t)
	run, _ := newRun(t, s, "o/r", "needle") // a key is no text
	r := must[*store.Recorder](t)(s.Recorder(context.Background(), run.ID))
	for i := range 1000 {
		text := fmt.Sprintf("line %d", i+1)
		switch i + 1 {
		case 300:
			text = `a Needle & "quotes" <x>`
		case 700:
			text = "needle, NEEDLE"
		}
		r.Emit(ci.Record{Type: ci.LogLine, Job: "needle", Step: 1, Stream: "stdout", Text: text})
	}
	ok(t, r.Close())
	for _, c := range []struct {
		words string
		from  int64
		n     int
		total int64
		lines []int64
	}{
		{"needle", 1, 10, 2, []int64{300, 700}},
		{"needle", 1, 1, 2, []int64{300}},
		{"needle", 301, 10, 1, []int64{700}},
		{"Needle", 1, 10, 1, []int64{300}},
		{`& "quotes" <X>`, 1, 10, 0, nil},
		{`& "quotes" <x>`, 1, 10, 1, []int64{300}},
		{"line 1000", 900, 10, 1, []int64{1000}},
		{"stdout", 1, 10, 0, nil},
		{"", 1, 10, 0, nil},
		{"line", 1, 3, 998, []int64{1, 2, 3}},
		{"line", 2000, 3, 0, nil},
	} {
		m, err := s.LogFind(t.Context(), run.ID, "needle", c.words, c.from, c.n)
		ok(t, err)
		var got []int64
		for _, l := range m.Lines {
			got = append(got, l.Number)
		}
		if m.Total != c.total || fmt.Sprint(got) != fmt.Sprint(c.lines) || m.Next != 0 {
			t.Errorf("%q from %d: %d in %v, then %d", c.words, c.from, m.Total, got, m.Next)
		}
	}
}

// A search in a log of a gigabyte reads a bounded part of it, says where it ended,
// and goes on there.
func TestAttackSearchOfEndlessLog(t *testing.T) {
	store.LimitFinding(t, 64<<10)
	s, _ := open(t)
	run, _ := newRun(t, s, "o/r", "j")
	r := must[*store.Recorder](t)(s.Recorder(context.Background(), run.ID))
	for range 5000 {
		r.Emit(ci.Record{Type: ci.LogLine, Job: "j", Step: 1, Stream: "stdout", Text: "y"})
	}
	ok(t, r.Close())
	var found, searches int64
	for from := int64(1); from > 0; searches++ {
		m, err := s.LogFind(t.Context(), run.ID, "j", "y", from, 10)
		ok(t, err)
		if len(m.Lines) > 10 || m.Next != 0 && m.Next <= from {
			t.Fatalf("%d lines, then %d", len(m.Lines), m.Next)
		}
		found, from = found+m.Total, m.Next
	}
	if found != 5000 || searches < 5 {
		t.Errorf("%d of 5000 found in %d searches", found, searches)
	}
}
