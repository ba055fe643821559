package expr

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// FileHasher is a file system that gives the SHA-256 of many files at once, in the
// order of their names.
type FileHasher interface {
	Hash(names []string) ([][]byte, error)
}

// Follows reports whether the arguments of hashFiles ask for symbolic links to be
// followed.
func Follows(patterns []string) bool {
	return len(patterns) > 0 && EqualFold(patterns[0], "--follow-symbolic-links")
}

// maxHashEntries bounds the files and directories that one call looks at.
const maxHashEntries = 5_000_000

// HashFiles is the function hashFiles over a workspace: the SHA-256, in hex, of
// the SHA-256 of every file that the patterns match, in the order of GitHub's
// walk; empty if none matches. root is the absolute path that the workspace
// has for the workflow, so that absolute patterns below it are understood.
//
// Patterns are those of @actions/glob: *, ?, [abc], **, ! to exclude what earlier
// patterns matched, # for a comment; one argument may hold several, a line each. A
// pattern that matches a directory takes everything in it; hidden files count.
// Symbolic links to files are hashed as the file; those to directories are not
// followed unless the first argument is --follow-symbolic-links. One that leads
// nowhere is an error, but among those that are followed it does not count.
func HashFiles(fsys fs.FS, root string, patterns []string) (string, error) {
	follow := Follows(patterns)
	if follow {
		patterns = patterns[1:]
	} else if len(patterns) > 0 && strings.HasPrefix(patterns[0], "--") {
		return "", faultf("Invalid glob option %s, available option: '--follow-symbolic-links'.", patterns[0])
	}
	var globs []fileGlob
	for _, arg := range patterns {
		for line := range strings.SplitSeq(arg, "\n") {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			g, ok, err := parseFileGlob(line, root)
			if err != nil {
				return "", err
			}
			if !ok {
				continue // outside the workspace, where nothing is hashed
			}
			globs = append(globs, g)
			if n := len(g.segments); n == 0 || g.segments[n-1] != "**" || g.dirOnly {
				g.segments = append(slices.Clip(g.segments), "**")
				g.dirOnly = false
				g.implicit = true
				globs = append(globs, g)
			}
		}
	}
	w := hashWalk{fsys: fsys, globs: globs, follow: follow, sum: sha256.New()}
	for _, start := range searchPaths(globs) {
		if err := w.visit(start, 0); err != nil {
			return "", fmt.Errorf("hashFiles: %w", err)
		}
	}
	if w.files == 0 {
		return "", nil
	}
	if many, ok := fsys.(FileHasher); ok {
		sums, err := many.Hash(w.names)
		if err == nil && len(sums) != len(w.names) {
			err = fmt.Errorf("%d sums of %d files", len(sums), len(w.names))
		}
		if err != nil {
			return "", fmt.Errorf("hashFiles: %w", err)
		}
		for _, s := range sums {
			w.sum.Write(s)
		}
	}
	return hex.EncodeToString(w.sum.Sum(nil)), nil
}

// fileGlob is one pattern, cut at its slashes, relative to the workspace.
type fileGlob struct {
	segments []string
	negate   bool
	dirOnly  bool // written with a slash at the end
	implicit bool // made from a pattern to take what is in a matched directory
}

func parseFileGlob(s, root string) (g fileGlob, inside bool, err error) {
	line := s
	for strings.HasPrefix(s, "!") {
		g.negate = !g.negate
		s = strings.TrimSpace(s[1:])
	}
	if s == "" {
		return g, false, faultf("Invalid pattern '%s'", line)
	}
	if strings.HasPrefix(s, "/") {
		root = path.Clean("/" + root)
		rest := path.Clean(s)
		if root != "/" {
			switch {
			case rest == root:
				rest = "/"
			case strings.HasPrefix(rest, root+"/"):
				rest = rest[len(root):]
			default:
				return g, false, nil
			}
		}
		if strings.HasSuffix(s, "/") && rest != "/" {
			rest += "/"
		}
		s = strings.TrimPrefix(rest, "/")
	}
	g.dirOnly = strings.HasSuffix(s, "/")
	for i, seg := range strings.Split(s, "/") {
		switch seg {
		case "":
		case ".":
			if i > 0 {
				return g, false, faultf("Invalid pattern '%s'. Relative pathing '.' and '..' is not allowed.", line)
			}
		case "..":
			return g, false, faultf("Invalid pattern '%s'. Relative pathing '.' and '..' is not allowed.", line)
		default:
			if seg == "**" && len(g.segments) > 0 && g.segments[len(g.segments)-1] == "**" {
				continue
			}
			g.segments = append(g.segments, seg)
		}
	}
	return g, true, nil
}

func literalSegment(seg string) (string, bool) {
	if strings.ContainsAny(seg, `*?[\`) {
		return "", false
	}
	return seg, true
}

// searchPaths are the directories or files to start from: what comes before the
// first wildcard of each pattern, without those inside another.
func searchPaths(globs []fileGlob) []string {
	var all []string
	for _, g := range globs {
		if g.negate {
			continue
		}
		dir := "."
		for _, seg := range g.segments {
			lit, ok := literalSegment(seg)
			if !ok {
				break
			}
			dir = path.Join(dir, lit)
		}
		if !slices.Contains(all, dir) {
			all = append(all, dir)
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(p string) bool {
		return p != "." && slices.ContainsFunc(all, func(q string) bool {
			return q != p && (q == "." || strings.HasPrefix(p, q+"/"))
		})
	})
}

type hashWalk struct {
	fsys    fs.FS
	globs   []fileGlob
	follow  bool
	sum     hash.Hash
	files   int
	names   []string // of the files, for a [FileHasher]
	entries int
	chain   []fs.FileInfo // the directories above, to notice links that lead back
}

const maxPathDepth = 256

// visit walks depth first, a directory's entries in the order of their names.
func (w *hashWalk) visit(name string, depth int) error {
	if w.entries++; w.entries > maxHashEntries {
		return fmt.Errorf("more than %d files", maxHashEntries)
	}
	if depth > maxPathDepth {
		return fmt.Errorf("%s is nested more than %d deep", name, maxPathDepth)
	}
	file, dir, below := w.match(name)
	if !file && !dir && !below {
		return nil
	}
	info, err := fs.Lstat(w.fsys, name)
	if err != nil {
		if depth == 0 {
			return nil // the pattern names nothing that exists
		}
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := fs.Stat(w.fsys, name)
		switch {
		case err != nil && (w.follow || !file):
			return nil
		case err != nil:
			return fmt.Errorf("%s is a symbolic link that leads nowhere: %w", name, err)
		case target.IsDir() && !w.follow:
			return nil
		}
		info = target
	}
	if info.IsDir() {
		if !dir && !below {
			return nil
		}
		if w.follow && slices.ContainsFunc(w.chain, func(up fs.FileInfo) bool { return os.SameFile(up, info) }) {
			return nil
		}
		w.chain = append(w.chain, info)
		defer func() { w.chain = w.chain[:len(w.chain)-1] }()
		entries, err := fs.ReadDir(w.fsys, name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := w.visit(path.Join(name, e.Name()), depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	if !file || !info.Mode().IsRegular() {
		return nil
	}
	w.files++
	if _, many := w.fsys.(FileHasher); many {
		w.names = append(w.names, name)
		return nil
	}
	f, err := w.fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	w.sum.Write(h.Sum(nil))
	return nil
}

// match says whether a path is taken as a file, as a directory, and whether
// something below it may be.
func (w *hashWalk) match(name string) (file, dir, below bool) {
	var segs []string
	if name != "." {
		segs = strings.Split(name, "/")
	}
	for _, g := range w.globs {
		whole, part := g.match(segs)
		if g.negate {
			if whole {
				dir = false
				if !g.dirOnly {
					file = false
				}
			}
			continue
		}
		if whole {
			dir = true
			if !g.dirOnly {
				file = true
			}
		}
		below = below || part
	}
	return file, dir, below
}

// match reports whether the pattern matches the path, and whether it could match
// something below it. It follows all positions in the pattern at once, so its
// time is at most segments times pattern.
func (g fileGlob) match(segs []string) (whole, part bool) {
	n := len(g.segments)
	at := make([]bool, n+1) // at[i]: the first i segments of the pattern are used up
	at[0] = true
	next := make([]bool, n+1)
	for _, s := range segs {
		g.skip(at)
		clear(next)
		for i := range n {
			if !at[i] {
				continue
			}
			if g.segments[i] == "**" {
				next[i] = true
				if g.implicit && i == n-1 {
					next[n] = true
				}
			} else if matchSegment(g.segments[i], s) {
				next[i+1] = true
			}
		}
		at, next = next, at
	}
	g.skip(at)
	part = slices.Contains(at[:n], true)
	return at[n], part
}

// skip lets every ** match nothing, but not one that was added to take what is in
// a matched directory: what is no directory is not to match by it.
func (g fileGlob) skip(at []bool) {
	for i, seg := range g.segments {
		if at[i] && seg == "**" && !(g.implicit && i == len(g.segments)-1) {
			at[i+1] = true
		}
	}
}

// matchSegment matches one path segment: * any run, ? one character, [..] one of a
// set, \ the next character itself.
func matchSegment(pat, s string) bool {
	if !strings.ContainsAny(pat, `*?[\`) {
		return pat == s
	}
	p, t := []rune(pat), []rune(s)
	i, j := 0, 0
	star, mark := -1, 0
	for j < len(t) {
		if i < len(p) && p[i] == '*' {
			star, mark = i, j
			i++
			continue
		}
		if n := matchOne(p[min(i, len(p)):], t[j]); n > 0 {
			i += n
			j++
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		i, j = star+1, mark
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// matchOne matches one character and returns how much of the pattern that took,
// 0 if it does not match.
func matchOne(p []rune, c rune) int {
	if len(p) == 0 {
		return 0
	}
	switch p[0] {
	case '?':
		return 1
	case '\\':
		if len(p) > 1 {
			if p[1] == c {
				return 2
			}
			return 0
		}
	case '[':
		if n, in := matchSet(p, c); n > 0 {
			if in {
				return n
			}
			return 0
		}
	}
	if p[0] == c {
		return 1
	}
	return 0
}

// matchSet reads [abc], [a-z], [!a] or [^a]. n is 0 if the bracket is not closed
// and so stands for itself.
func matchSet(p []rune, c rune) (n int, in bool) {
	i := 1
	negate := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negate {
		i++
	}
	for first := true; i < len(p); first = false {
		if p[i] == ']' && !first {
			return i + 1, in != negate
		}
		lo := p[i]
		if lo == '\\' && i+1 < len(p) {
			i++
			lo = p[i]
		}
		hi := lo
		if i+2 < len(p) && p[i+1] == '-' && p[i+2] != ']' {
			hi = p[i+2]
			i += 2
		}
		if lo <= c && c <= hi {
			in = true
		}
		i++
	}
	return 0, false
}
