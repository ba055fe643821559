package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseLines(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"A=1\n# no\n\nexport B = two \nC='x y' \nD=\"q\\\"n\\nl\"\nE=v # remark\nF=", `A="1" B="two" C="x y" D="q\"n\nl" E="v" F=""`},
		{"KEY<<EOF\n-----BEGIN-----\n  a=b\n\n# kept\n-----END-----\nEOF\nB=2", `KEY="-----BEGIN-----\n  a=b\n\n# kept\n-----END-----" B="2"`},
		{"export KEY<<END OF IT\nx\r\nEND OF IT\n", `KEY="x"`},
		{"A=\"one\ntwo\n three\"\nB='one\n two'\nC=3", `A="one\ntwo\n three" B="one\n two" C="3"`},
		{"A=it's\nB='tis fine", `A="it's" B="'tis fine"`},
		{"A=\"x # y\" # remark\nB=2", `A="x # y" B="2"`},
		{"A=a<<b\nURL=http://h/?x<<1", `A="a<<b" URL="http://h/?x<<1"`},
		{"A: 0123\nB: true\nC: |\n  one\n  two\nD: 'x # y'\nE:\nF: \"a\\nb\" # remark\n", `A="0123" B="true" C="one\ntwo\n" D="x # y" E="" F="a\nb"`},
		{"# what follows is YAML\n---\nA: b=c\n", `A="b=c"`},
		{"\ufeffA=1", `A="1"`},
	} {
		var got []string
		if err := ParseLines([]byte(c.src), func(_ int, name, value string) { got = append(got, fmt.Sprintf("%s=%q", name, value)) }); err != nil ||
			strings.Join(got, " ") != c.want {
			t.Errorf("%q: %s, %v\nwant %s", c.src, strings.Join(got, " "), err, c.want)
		}
	}
	for src, line := range map[string]int{
		"A=1\nhunter2": 2, "A=\"hunter2": 1, "A=1\nKEY<<EOF\nhunter2\n": 2, "A: x\nB: [hunter2]": 2, "A: &a hunter2\nB: *a": 2, "A: 'hunter2": 1,
		"A: {x: hunter2}": 1,
	} {
		err := ParseLines([]byte(src), func(int, string, string) {})
		wrong, ok := errors.AsType[*LineError](err)
		if !ok || strings.Contains(err.Error(), "hunter2") || wrong.Line < line {
			t.Errorf("%q: %v", src, err)
		}
	}
}
