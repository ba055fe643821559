package main

import (
	"fmt"
	"strings"
	"testing"
)

// What a machine says of itself is read, however odd its names are, and compared.
func TestScenesCompared(t *testing.T) {
	scenes := [2]scene{}
	for i, files := range []string{
		"f 644 0:0 3 1.0 \x00/a\x00f 644 0:0 3 1.0 \x00/b c\nd\x00l 777 0:0 1 1.0 x\x00/l\x00d 755 0:0 9 1.0 \x00/dir\x00f 600 0:0 5 1.0 \x00/gone\x00f 644 0:0 3 1.0 \x00/m\x00",
		"f 644 0:0 3 2.0 \x00/a\x00f 644 0:0 8 2.0 \x00/b c\nd\x00l 777 0:0 1 1.0 y\x00/l\x00d 755 0:0 9 2.0 \x00/dir\x00d 755 0:0 9 2.0 \x00/new\x00f 755 0:0 3 1.0 \x00/m\x00f 1",
	} {
		scenes[i] = scene{files: map[string]entry{}, processes: map[string]int{}, ports: map[string]int{}, packages: map[string]string{}}
		if err := scenes[i].readFiles(strings.NewReader(files)); err != nil {
			t.Fatal(err)
		}
		if err := scenes[i].readProcesses(strings.NewReader([]string{"init \n\nsleep 5 \n", "init \n\nsleep 5 \nsleep 5 \nsleep 5 \n"}[i])); err != nil {
			t.Fatal(err)
		}
		if err := scenes[i].readPorts(strings.NewReader("  sl  local_address rem_address   st\n 0: 00000000:0016 00000000:0000 0A 0\n" +
			[]string{" 1: 0100007F:1F90 00000000:0000 01 0\n", " 1: 0100007F:1F90 00000000:0000 0A 0\n 2: 00:1F90 0:0 0A 0\n 3: x\n"}[i])); err != nil {
			t.Fatal(err)
		}
		if err := scenes[i].readPackages(strings.NewReader([]string{"a\t1\nb\t1\n", "a\t2\nc\t1\nrubbish\n"}[i])); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, c := range compare(scenes[0], scenes[1]) {
		got = append(got, fmt.Sprintf("%s %s %q %d %d %s", c.How, c.Kind, c.Name, c.Before, c.After, c.Detail))
	}
	want := []string{
		`changed file "/a" 3 3 `,
		`changed file "/b c\nd" 3 8 `,
		`removed file "/gone" 5 0 `,
		`changed file "/l" 1 1 → y`,
		`changed file "/m" 3 3 mode 644 → 755`,
		`added file "/new/" 0 0 `,
		`added process "sleep 5" 0 0 ×2`,
		`added port "tcp 8080" 0 0 `,
		`changed package "a" 0 0 1 → 2`,
		`removed package "b" 0 0 1`,
		`added package "c" 0 0 1`,
	}
	if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
		t.Errorf("got\n%s\nwant\n%s", a, b)
	}
}

// FuzzListings: no list of a machine's is more than an error.
func FuzzListings(f *testing.F) {
	f.Add("f 644 0:0 3 1.0 \x00/a\x00")
	f.Add(" 1: 0100007F:1F90 00000000:0000 0A 0\na\tb\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := scene{files: map[string]entry{}, processes: map[string]int{}, ports: map[string]int{}, packages: map[string]string{}}
		if err := s.readFiles(strings.NewReader(text)); err != nil && !strings.Contains(err.Error(), "a list of files") &&
			!strings.Contains(err.Error(), "too long") {
			t.Error(err)
		}
		for _, fn := range []func(string) error{
			func(x string) error { return s.readProcesses(strings.NewReader(x)) },
			func(x string) error { return s.readPorts(strings.NewReader(x)) },
			func(x string) error { return s.readPackages(strings.NewReader(x)) },
		} {
			if err := fn(text); err != nil {
				t.Error(err)
			}
		}
		if n := len(compare(s, s)); n != 0 {
			t.Errorf("%d changes in nothing", n)
		}
	})
}
