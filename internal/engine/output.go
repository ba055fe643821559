package engine

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
	"github.com/hearth-ci/hearth/internal/mask"
)

// Bounds on a line of output.
const (
	maxWhole   = 64 << 10 // a longer line is passed on as it comes: no command of the older form, no problem in it
	maxCommand = 4 << 20  // a longer line that begins as a command is none
	maxText    = 16 << 10 // longest text of one record: a longer line becomes several
	maxLine    = 1 << 20  // what is shown of one line
)

// stream reads one output stream of a step: bytes in, effects and records out.
// It implements io.Writer; a slow sink makes Write slow, and with it the step.
type stream struct {
	x    *execution
	name string // stdout, stderr
	text printer
	mask *mask.Writer

	buf  []byte // of a line not ended
	long bool   // the line is being passed on as it comes
	cr   bool   // the line ended with \r: a \n after it is the same line end
	last string // what the last line that ended with \r looked like
}

func newStream(x *execution, name string) *stream {
	s := &stream{x: x, name: name}
	s.text = printer{x: x, stream: name}
	s.mask = mask.NewWriter(&s.text, x.r.mask)
	return s
}

// Write splits p into lines. Like GitHub's, our lines also end at a lone \r. When
// the job is over nothing more becomes of them.
func (s *stream) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if hard := s.x.r.hard; hard.Err() != nil {
			return n - len(p), context.Cause(hard)
		}
		if s.x.mute {
			return n, nil
		}
		if s.cr {
			s.cr = false
			nl := p[0] == '\n'
			s.end(!nl)
			if nl {
				p = p[1:]
				continue
			}
		}
		i := bytes.IndexAny(p, "\r\n")
		if i < 0 {
			s.add(p)
			break
		}
		s.add(p[:i])
		if p[i] == '\r' {
			s.cr = true
		} else {
			s.end(false)
		}
		p = p[i+1:]
	}
	return n, nil
}

// close ends the last line, if it has not ended.
func (s *stream) close() {
	if s.cr || s.long || len(s.buf) > 0 {
		s.cr = false
		s.end(false)
	}
}

func (s *stream) add(p []byte) {
	for len(p) > 0 {
		if s.long {
			s.mask.Write(p)
			return
		}
		limit := maxWhole
		if len(s.buf) >= maxWhole && command.MaybeCommand(s.buf[:maxWhole]) {
			limit = maxCommand
		}
		if len(s.buf) >= limit {
			s.long = true
			s.mask.Write(s.buf)
			s.buf = nil
			continue
		}
		n := min(len(p), limit-len(s.buf))
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
	}
}

// end is called at the end of a line; returned says that it was a lone \r, after
// which a terminal would write over the line.
func (s *stream) end(returned bool) {
	if s.long {
		s.long = false
		s.mask.Write([]byte("\n"))
		return
	}
	line := string(s.buf)
	if s.buf = s.buf[:0]; cap(s.buf) > maxWhole {
		s.buf = nil
	}
	if returned {
		// A progress display: show the first of lines that differ only in
		// their figures, and what the display ends with.
		if line == "" {
			return
		}
		look := likeness(line)
		if look == s.last {
			return
		}
		s.last = look
	} else {
		s.last = ""
	}
	s.x.line(s, line)
}

// likeness is what of a line stays when a progress display moves on.
func likeness(line string) string {
	if len(line) > 256 {
		line = line[:256]
	}
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= 0x80 && r < 0x2000 {
			return r
		}
		return -1
	}, line)
}

// print passes text on, a line at a time.
func (s *stream) print(text string) {
	s.mask.Write([]byte(text))
	s.mask.Write([]byte("\n"))
}

// printer makes records of masked text.
type printer struct {
	x      *execution
	stream string
	buf    []byte
	shown  int // bytes of the line that were shown
	cut    int // and that were not
}

// Write takes masked bytes.
func (p *printer) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		part := b
		if i >= 0 {
			part = b[:i]
		}
		p.take(part)
		if i < 0 {
			break
		}
		p.endLine()
		b = b[i+1:]
	}
	return n, nil
}

func (p *printer) take(b []byte) {
	for len(b) > 0 {
		if p.shown >= maxLine {
			p.cut += len(b)
			return
		}
		n := min(len(b), maxText-len(p.buf))
		p.buf = append(p.buf, b[:n]...)
		p.shown += n
		b = b[n:]
		if len(p.buf) == maxText {
			p.flush(wholeRunes(p.buf))
		}
	}
}

// wholeRunes is how much of b can be cut off without cutting a character.
func wholeRunes(b []byte) int {
	for i := 1; i <= utf8.UTFMax && i < len(b); i++ {
		if utf8.RuneStart(b[len(b)-i]) {
			if !utf8.FullRune(b[len(b)-i:]) {
				return len(b) - i
			}
			break
		}
	}
	return len(b)
}

func (p *printer) flush(n int) {
	p.x.r.log(p.x, p.stream, string(p.buf[:n]))
	p.buf = append(p.buf[:0], p.buf[n:]...)
}

func (p *printer) endLine() {
	if len(p.buf) > 0 || p.shown == 0 {
		p.flush(len(p.buf))
	}
	if p.cut > 0 {
		p.x.r.log(p.x, "system", fmt.Sprintf("(the line goes on for %d bytes that are not shown)", p.cut))
	}
	p.shown, p.cut = 0, 0
}

// line takes one whole line of output and does what follows from it. Output of
// both streams arrives in one goroutine.
func (x *execution) line(s *stream, line string) {
	for _, e := range x.commands.Line(line) {
		x.effect(s, e, line)
	}
}

func (x *execution) effect(s *stream, e command.Effect, line string) {
	r := x.r
	switch e.Kind {
	case command.Print:
		s.print(e.Value)
		if e.Value == line {
			if a, ok := x.matcher.Line(x.ctx, line); ok {
				for _, e := range x.commands.Count(a) {
					e.Annotation.File = x.r.matched(x.ctx, x, e.Annotation.File)
					x.effect(s, e, "")
				}
			}
		}
	case command.Debug:
		if r.job.Runner.Debug {
			for l := range strings.SplitSeq(e.Value, "\n") {
				s.print("##[debug]" + l)
			}
		}
	case command.Group:
		x.endGroup() // groups do not nest
		x.grouped = true
		r.emit(x, ci.Record{Type: ci.Group, Stream: "start", Text: oneLine(e.Value)})
	case command.EndGroup:
		x.endGroup()
	case command.Annotate:
		r.annotate(x, e.Annotation)
	case command.AddMask:
		if err := r.hide(e.Value); err != nil {
			// The step is about to print what nothing can hide.
			x.failed, x.mute = true, true
			x.error(fmt.Sprintf("::add-mask::: %s. The step is ended, and what it still prints is not shown.", err))
			if x.stop != nil {
				x.stop(errUnmasked)
			}
		}
	case command.SetOutput:
		x.setOutput(e.Name, e.Value)
	case command.SaveState:
		x.saveState(e.Name, e.Value)
	case command.SetEnv:
		x.setEnv(e.Name, e.Value)
	case command.AddPath:
		x.addPath(e.Value)
	case command.AddMatcher, command.RemoveMatcher:
		x.setMatchers(e)
	case command.Fail:
		x.failed = true
	}
}

// endGroup ends the group that the step's output is in, if it is in one.
func (x *execution) endGroup() {
	if x.grouped {
		x.grouped = false
		x.r.emit(x, ci.Record{Type: ci.Group, Stream: "end"})
	}
}

// oneLine makes text fit for a field that is one line.
func oneLine(s string) string {
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		s = s[:i] + " …"
	}
	return s
}
