package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/lint"
	"github.com/hearth-ci/hearth/internal/prompt"
)

func (a *app) lintCommand() *cobra.Command {
	var format string
	var noAdvice bool
	c := &cobra.Command{
		Use:   "lint [FILE…]",
		Short: "Check workflow files as GitHub reads them, with advice",
		Long: `Check workflow files (default: .github/workflows). Exit code 0 when GitHub would
take the files, 2 when not. Advice changes no exit code.`,
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := lint.Files(args, lint.Options{NoAdvice: noAdvice})
			if err != nil {
				return usage("%v", err)
			}
			if err := r.Write(board.Escaped(a.out), format); err != nil {
				return usage("%v", err)
			}
			if code := r.ExitCode(); code != 0 {
				return &exit{code: code}
			}
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "text", strings.Join(lint.Formats(), ", "))
	c.Flags().BoolVar(&noAdvice, "no-advice", false, "errors only")
	return c
}

func (a *app) newCommand() *cobra.Command {
	var out string
	var force bool
	c := &cobra.Command{
		Use:   `new "WORDS" | -`,
		Short: "Write a workflow from words",
		Long: `Write a workflow from words, like
  hearth new "run cargo test and if it passes, build the project"

Without WORDS, or with -, they are read from standard input.

A language model writes it where one is configured (OPENROUTER_API_KEY, or
HEARTH_LLM_URL with HEARTH_LLM_KEY and HEARTH_LLM_MODEL for any OpenAI-compatible
endpoint); its answer is checked and never run. Otherwise, and when the model's
answer cannot be used, hearth's own parser of plain phrasing does. Standard error
says which of the two spoke, how typing errors were read, and which programs the
default image lacks. What is not understood is refused, exit code 2.`,
		RunE: func(c *cobra.Command, args []string) error {
			words := strings.Join(args, " ")
			if len(args) == 0 || words == "-" {
				b, err := io.ReadAll(io.LimitReader(c.InOrStdin(), prompt.MaxRequest+1))
				if err != nil {
					return fmt.Errorf("reading the words from standard input: %w", err)
				}
				words = string(b)
			}
			r, err := prompt.New(c.Context(), prompt.ConfigFromEnv(a.getenv), words)
			var refusal *prompt.Refusal
			if errors.As(err, &refusal) {
				return &exit{exitUsage, refusal}
			}
			if err != nil {
				return err
			}
			for _, n := range r.Notes {
				fmt.Fprintln(a.err, "note:", n)
			}
			if out == "" {
				if _, err := fmt.Fprint(a.out, r.YAML); err != nil {
					return err
				}
			} else {
				flags := os.O_CREATE | os.O_WRONLY | os.O_EXCL
				if force {
					flags = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
				}
				f, err := os.OpenFile(out, flags, 0o644)
				if errors.Is(err, os.ErrExist) {
					return usage("%s exists: --force overwrites it", out)
				}
				if err != nil {
					return usage("-o: %v", err)
				}
				_, err = f.WriteString(r.YAML)
				if err := errors.Join(err, f.Close()); err != nil {
					return &exit{exitInfrastructure, err}
				}
			}
			a.lacking(r.Lacks)
			fmt.Fprintln(a.err, "written by", r.By)
			return nil
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "save it to this file")
	c.Flags().BoolVar(&force, "force", false, "overwrite the file")
	return c
}

// lacking says which programs are not in the default image, and how to get them.
func (a *app) lacking(lacks []prompt.Lack) {
	var packages, other []string
	for _, l := range lacks {
		if l.Package == "" {
			other = append(other, l.Program)
		} else if !slices.Contains(packages, l.Package) {
			packages = append(packages, l.Package)
		}
	}
	if len(packages) > 0 {
		fmt.Fprintf(a.err, "note: the default image lacks some of its programs: hearth image build --packages %s --name ci, then hearth run -P ubuntu-latest=ci\n",
			strings.Join(packages, ","))
	}
	if len(other) > 0 {
		fmt.Fprintf(a.err, "note: the default image lacks %s, and Debian has no package of it: install it in a step, or use an action that does\n",
			strings.Join(other, ", "))
	}
}
