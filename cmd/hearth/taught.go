package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/learn"
)

// What `hearth vm run` and `hearth vm exec` run is learned from, unless somebody does
// not want it; what is expected and explained they say when asked, since the
// streams are the command's.

// learnOptions are the flags of commands that are learned from.
type learnOptions struct {
	mode    string
	explain bool
	secrets []string
}

func (o *learnOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.mode, "learn", "", "off or advise: whether the command is learned from (default advise, or HEARTH_LEARN)")
	f.BoolVar(&o.explain, "explain", false, "say on standard error what is expected of the command, and what is known of its failure")
	f.StringArrayVar(&o.secrets, "secret", nil, "like --env, but the value is never remembered")
}

// off says whether nothing is to be learned.
func (o *learnOptions) off(a *app) (bool, error) {
	switch m := learn.Mode(cmp.Or(o.mode, a.getenv("HEARTH_LEARN"), string(learn.Advise))); m {
	case learn.Off:
		if o.explain {
			return true, usage("--explain needs --learn advise")
		}
		return true, nil
	case learn.Advise, learn.Act:
		return false, nil
	default:
		return false, usage("learning mode %q is neither off nor advise", string(m))
	}
}

// keeper opens the memory. Without it commands run all the same.
func (a *app) keeper(ctx context.Context) (*history.Keeper, func()) {
	s, _, err := a.store(ctx, "")
	if err != nil {
		a.log().Warn("nothing is learned", "err", err)
		return nil, func() {}
	}
	l, err := learn.Open(ctx, s, learn.Options{Log: a.log()})
	if err != nil {
		a.log().Warn("nothing is learned", "err", err)
		s.Close()
		return nil, func() {}
	}
	return &history.Keeper{Learn: l, Log: a.log()}, func() { s.Close() }
}

// memoryHere is whose memory a command that is run from here belongs to: that of the
// repository, or one for what is run elsewhere. A directory that is no repository is
// not read for its name.
func (a *app) memoryHere(ctx context.Context) string {
	const elsewhere = "local/vm"
	dir, err := os.Getwd()
	if err != nil {
		return elsewhere
	}
	for d := dir; ; d = filepath.Dir(d) {
		if isProject(filepath.Join(d, ".git"), false) {
			break
		}
		if filepath.Dir(d) == d {
			return elsewhere
		}
	}
	p, err := findProject(ctx, dir)
	if err != nil {
		return elsewhere
	}
	return p.repository
}

func (a *app) expects(o learnOptions, e history.Expectation) {
	if !o.explain {
		return
	}
	text := board.Expectation(&e.Prediction)
	if text == "" && len(e.Reasons) > 0 {
		text = fmt.Sprintf("%s to fail, %s", board.Percent(e.PFail), board.Clean(e.Reasons[0]))
	}
	fmt.Fprintf(a.err, "expected of %s: %s\n", board.Cut(board.Clean(e.Command), 80), text)
}

func (a *app) explains(o learnOptions, e *ci.Explanation) {
	if !o.explain || e == nil {
		return
	}
	for _, l := range board.Explain(e) {
		fmt.Fprintln(a.err, strings.TrimPrefix(l, "    "))
	}
}

// values are those of secrets that were given as NAME=value or NAME.
func (a *app) values(secrets []string) (out []string) {
	for _, s := range secrets {
		if _, v, err := a.variable("--secret", s); err == nil {
			out = append(out, v)
		}
	}
	return out
}

// begin begins the history of a machine with the one command that is run in it; nil if
// it is not learned from.
func (a *app) begin(ctx context.Context, machine string, o learnOptions, cmd guest.Cmd) (*history.Execution, func(), error) {
	off, err := o.off(a)
	if off || err != nil {
		return nil, func() {}, err
	}
	k, done := a.keeper(ctx)
	x := k.Open(machine).Begin(ctx, history.Command{Repository: a.memoryHere(ctx), Door: "vm", Argv: cmd.Argv, Env: cmd.Env, Secrets: a.values(o.secrets)})
	return x, done, nil
}
