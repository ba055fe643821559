package git

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Person is an author or committer. GitHub gives the time without its zone.
type Person struct {
	Name, Email string
	When        time.Time
}

// Commit is what GitHub says a commit is: all of its object but the time zones, and
// for a signed one the object as it was signed.
type Commit struct {
	SHA               string
	Tree              string
	Parents           []string
	Author, Committer Person
	Message           string
	Signature         string // "" if it has none
	Payload           string // what was signed
}

// ErrNotRebuilt says that no object with the commit's name could be made of what is
// known of it.
var ErrNotRebuilt = errors.New("its object holds what GitHub does not tell")

// Object makes the commit's object anew: the bytes whose hash is its name, so there
// is no telling it from the real one. What GitHub leaves out, the zones and the last
// line end, is tried.
func (c *Commit) Object() ([]byte, error) {
	if !ObjectID(c.SHA) {
		return nil, ErrNotRebuilt
	}
	if c.Signature != "" {
		header, message, ok := strings.Cut(c.Payload, "\n\n")
		if !ok {
			return nil, ErrNotRebuilt
		}
		field := "gpgsig"
		if len(c.SHA) == 64 {
			field = "gpgsig-sha256"
		}
		for _, end := range []string{"", "\n"} {
			s := strings.TrimRight(c.Signature, "\n") + end
			b := []byte(header + "\n" + field + " " + strings.ReplaceAll(s, "\n", "\n ") + "\n\n" + message)
			if c.named(b) {
				return b, nil
			}
		}
		return nil, ErrNotRebuilt
	}
	var begin strings.Builder
	fmt.Fprintf(&begin, "tree %s\n", c.Tree)
	for _, p := range c.Parents {
		fmt.Fprintf(&begin, "parent %s\n", p)
	}
	try := func(author, committer string) []byte {
		text := fmt.Sprintf("%sauthor %s <%s> %d %s\ncommitter %s <%s> %d %s\n\n%s", &begin,
			c.Author.Name, c.Author.Email, c.Author.When.Unix(), author, c.Committer.Name, c.Committer.Email, c.Committer.When.Unix(), committer, c.Message)
		for _, end := range []string{"\n", "", "\n\n"} {
			if b := []byte(text + end); c.named(b) {
				return b
			}
		}
		return nil
	}
	for _, z := range zones {
		if b := try(z, z); b != nil {
			return b, nil
		}
	}
	for _, a := range zones {
		for _, z := range zones {
			if b := try(a, z); b != nil {
				return b, nil
			}
		}
	}
	return nil, ErrNotRebuilt
}

// zones are the time zones that there are, in steps of a quarter of an hour, by how
// probable they are.
var zones = func() (all []string) {
	for _, step := range []int{60, 30, 15} {
		for m := 0; m <= 14*60; m += step {
			if step < 60 && m%(2*step) == 0 {
				continue
			}
			z := fmt.Sprintf("%02d%02d", m/60, m%60)
			if all = append(all, "+"+z); m > 0 && m <= 12*60 {
				all = append(all, "-"+z)
			}
		}
	}
	return all
}()

// named says whether an object has the commit's name.
func (c *Commit) named(b []byte) bool {
	begin := fmt.Sprintf("commit %d\x00", len(b))
	if len(c.SHA) == 64 {
		h := sha256.New()
		io.WriteString(h, begin)
		h.Write(b)
		return hex.EncodeToString(h.Sum(nil)) == strings.ToLower(c.SHA)
	}
	h := sha1.New()
	io.WriteString(h, begin)
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil)) == strings.ToLower(c.SHA)
}

// Adopt writes the object of a commit whose tree d holds.
func (d Dir) Adopt(ctx context.Context, object []byte) (string, error) {
	var out strings.Builder
	err := d.stream(ctx, strings.NewReader(string(object)), &out, "hash-object", "-t", "commit", "-w", "--no-filters", "--stdin")
	return strings.TrimSpace(out.String()), err
}
