package suite

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// testcase is a case of a report while it is read.
type testcase struct {
	class, name, file string
	seconds           float64
	failed, skipped   bool
	again             int // failures that a rerun made good, or that were repeated
	passedAtLast      bool
	message           string
	wantMessage       bool
}

// JUnit reads a report: <testcase> elements wherever they stand, with <failure>,
// <error>, <skipped>, and Surefire's <flakyFailure> and <rerunFailure>. What was read
// before an error counts. A file that is no report adds nothing.
func (s *Set) JUnit(r io.Reader) error {
	limited := &io.LimitedReader{R: r, N: MaxReport + 1}
	d := xml.NewDecoder(limited)
	d.Strict = true
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil } // names outside ASCII come garbled, not lost
	seen := map[string]bool{}                                                            // in this report
	var c *testcase
	depth, at := 0, 0
	for {
		if limited.N == 0 {
			return fmt.Errorf("suite: the report has more than %d bytes", MaxReport)
		}
		tok, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			if depth > 0 {
				return errors.New("suite: the report is cut off")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("suite: the report cannot be read: %w", err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if depth++; depth > maxDepth {
				return fmt.Errorf("suite: the report is nested more than %d deep", maxDepth)
			}
			switch name := t.Name.Local; {
			case depth == 1 && name != "testsuites" && name != "testsuite" && name != "testrun":
				return nil // some other document
			case name == "testcase":
				c, at = &testcase{}, depth
				for _, a := range t.Attr {
					switch a.Name.Local {
					case "classname":
						c.class = a.Value
					case "name":
						c.name = a.Value
					case "file":
						c.file = a.Value
					case "time":
						c.seconds, _ = strconv.ParseFloat(strings.ReplaceAll(a.Value, ",", ""), 64)
					case "status", "result":
						c.skipped = c.skipped || a.Value == "notrun" || a.Value == "disabled" || a.Value == "skipped" || a.Value == "suppressed"
					}
				}
			case c != nil && depth == at+1:
				switch name {
				case "failure", "error":
					c.failed = true
				case "skipped":
					c.skipped = true
				case "flakyFailure", "flakyError":
					c.again++
					c.passedAtLast = true
				case "rerunFailure", "rerunError":
					c.again++
				default:
					continue
				}
				for _, a := range t.Attr {
					if a.Name.Local == "message" && c.message == "" && name != "skipped" {
						c.message = firstLine(a.Value)
					}
				}
				c.wantMessage = c.message == "" && name != "skipped"
			}
		case xml.CharData:
			if c != nil && c.wantMessage && depth == at+1 {
				c.message = clip(firstLine(string(t[:min(len(t), 4*MaxMessage)])), MaxMessage)
				c.wantMessage = c.message == ""
			}
		case xml.EndElement:
			if c != nil && depth == at {
				s.testcase(c, seen)
				c = nil
			}
			if depth--; depth < 0 {
				return errors.New("suite: the report ends more elements than it begins")
			}
		}
	}
}

func (s *Set) testcase(c *testcase, seen map[string]bool) {
	name := c.name
	switch {
	case c.class != "" && c.class != c.name:
		name = c.class + "." + c.name
	case c.class == "" && c.file != "":
		name = c.file + "." + c.name
	}
	r := s.get(name, JUnit)
	if r == nil {
		return
	}
	if c.seconds > 0 && c.seconds < 1e7 {
		r.Seconds = c.seconds
	}
	again := seen[r.Name]
	if len(seen) < MaxTests {
		seen[r.Name] = true
	}
	switch {
	case c.failed:
		if again { // of another case of this name, perhaps
			r.Passed = 0
		}
		r.Failed += 1 + c.again
		s.say(r, c.message)
	case c.passedAtLast:
		r.Failed += c.again
		r.Passed++
		s.say(r, c.message)
	case c.skipped:
		r.Skipped++
	case !again || r.Failed == 0:
		r.Passed++
	}
}
