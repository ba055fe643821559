package board

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

// What a machine printed came out of --json as it was: encoding/json escapes
// neither the control characters of U+0080 to U+009F, of which U+009B begins what a
// terminal obeys, nor those that turn text around or hide it.
func TestAttackTerminalByJSON(t *testing.T) {
	var all strings.Builder
	for r := rune(0); r <= utf8.MaxRune; r++ {
		if utf8.ValidRune(r) {
			all.WriteRune(r)
		}
	}
	in := map[string]string{"text": all.String(), "\u009b31m\u202e": "\xff"}
	var b bytes.Buffer
	if err := NewEncoder(&b).Encode(in); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.String() {
		if r != '\n' && (r < ' ' || unsafe(r)) {
			t.Fatalf("%U is written as it is", r)
		}
	}
	for _, r := range "\u007f\u0080\u009b\u009f\u200b\u200e\u200f\u061c\u202a\u202e\u2028\u2029\u2066\u2069\ufeff\U000e0041" {
		if strings.ContainsRune(b.String(), r) {
			t.Errorf("%U is written as it is", r)
		}
	}
	for _, r := range "aé漢😀\u00a0" {
		if !strings.ContainsRune(b.String(), r) {
			t.Errorf("%U is escaped", r)
		}
	}
	var out map[string]string
	if err := json.Unmarshal(b.Bytes(), &out); err != nil || out["text"] != in["text"] || out["\u009b31m\u202e"] != "\ufffd" {
		t.Errorf("the values have changed: %v", err)
	}
	// However it comes.
	var again bytes.Buffer
	enc := json.NewEncoder(&b)
	b.Reset()
	enc.Encode(in)
	if _, err := io.Copy(struct{ io.Writer }{Escaped(&again)}, iotest.OneByteReader(&b)); err != nil {
		t.Fatal(err)
	}
	out = nil
	if err := json.Unmarshal(again.Bytes(), &out); err != nil || out["text"] != in["text"] {
		t.Errorf("in pieces: %v", err)
	}
}
