package engine

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/plan"
)

// FuzzOutput writes the same output in one piece and in many. What a step prints
// must come out the same, valid, in bounded records, and without the secret.
func FuzzOutput(f *testing.F) {
	f.Add([]byte("one\r\ntwo hunter2 x\r50%\r51%\rhunt\rer2\n\xff\xfe\n::group::g\n::add-mask::word\nword\n::error::x"), uint8(3))
	f.Fuzz(func(t *testing.T, out []byte, cut uint8) {
		sameInPieces(t, out, int(cut)+1)
	})
}

func TestLongLinesInPieces(t *testing.T) {
	for _, out := range [][]byte{
		bytes.Repeat([]byte("hunter2"), 20_000),
		bytes.Repeat([]byte("a hunter2 "), 20_000),
		append(bytes.Repeat([]byte("é"), 170_000), "\r\nnext"...),
		append([]byte("::debug::"), bytes.Repeat([]byte("x"), 100_000)...),
		append([]byte("::nothing"), bytes.Repeat([]byte("x"), maxCommand)...),
	} {
		sameInPieces(t, out, 4093)
	}
}

func sameInPieces(t *testing.T, out []byte, cut int) {
	t.Helper()
	records := func(step int) []ci.Record {
		set, err := mask.NewSet("hunter2")
		if err != nil {
			t.Fatal(err)
		}
		var list []ci.Record
		r := &run{hard: t.Context(), mask: set, summary: map[int]string{},
			job: Job{Plan: &plan.Job{}, Emit: ci.SinkFunc(func(rec ci.Record) { list = append(list, rec) })}}
		x := &execution{r: r, ctx: t.Context(), state: map[string]string{}}
		x.commands = command.NewProcessor(command.Options{})
		x.listen()
		for rest := out; len(rest) > 0; {
			n := min(step, len(rest))
			x.streams[0].Write(rest[:n])
			rest = rest[n:]
		}
		x.streams[0].close()
		return list
	}
	if bytes.Contains(out, []byte("matcher")) {
		return // would look for a file in a guest
	}
	whole, pieces := records(len(out)+1), records(cut)
	if len(whole) != len(pieces) {
		t.Fatalf("%d records at once, %d in pieces of %d", len(whole), len(pieces), cut)
	}
	for i, r := range whole {
		if r.Text != pieces[i].Text || r.Type != pieces[i].Type || r.Message != pieces[i].Message {
			t.Fatalf("record %d: %q %q at once, %q %q in pieces", i, r.Type, r.Text, pieces[i].Type, pieces[i].Text)
		}
		for _, s := range []string{r.Text, r.Message, r.Title, r.File} {
			if strings.Contains(s, "hunter2") || !utf8.ValidString(s) || r.Type == ci.LogLine && (len(s) > 3*maxText || strings.ContainsAny(s, "\r\n")) {
				t.Fatalf("record %d: %.200q", i, s)
			}
		}
	}
}

// BenchmarkOutput is the way of a step's output from bytes to records.
func BenchmarkOutput(b *testing.B) {
	set, err := mask.NewSet("ghp_abcdefghijklmnopqrstuvwxyz012345", "another secret")
	if err != nil {
		b.Fatal(err)
	}
	r := &run{hard: b.Context(), mask: set, job: Job{RunID: "r", Plan: &plan.Job{}, Emit: ci.SinkFunc(func(ci.Record) {})}}
	x := &execution{r: r, ctx: b.Context()}
	x.commands = command.NewProcessor(command.Options{})
	x.listen()
	block := bytes.Repeat([]byte("2026-11-23T21:00:00Z ok   github.com/x/y 0.012s\n"), 600)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		x.streams[0].Write(block)
	}
}
