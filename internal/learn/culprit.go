package learn

import (
	"context"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
)

// Commit is one that may be to blame for a failure.
type Commit struct {
	SHA     string // "": what is not committed
	Subject string
	Author  string   // as in [Change]
	Files   []string // that it changes, by their paths
	Lines   int      // added and deleted; < 0: unknown
}

// How much is looked at, for one failure.
const (
	maxSuspects      = 4 // that are told
	MaxCommits       = 30
	maxCommitFiles   = 300
	maxMentions      = 400
	suspectLines     = 400 // of the output
	maxSuspectNameLn = 120
)

// The weights of what may be to blame, before it is divided by their sum. They order
// what has changed since the step passed last: a file that the failure names counts
// most, then how much was changed.
const (
	commitWeight  = .25
	overlapWeight = 6.
	docWeight     = .1 // of a commit that changes only documents
	lockWeight    = .6
	imageWeight   = .8
	actionWeight  = .6
	hostWeight    = .15
)

// suspects ranks what has changed since the step passed last, by how likely it is to
// blame: commits, the image, versions of actions, lock files, the host; and that nothing
// is, for it passes again by itself. since is the commit at which it passed last. There
// are none where it never did, or nothing has changed. class is that of the failure,
// flaky how likely that is, said the lines that say what went wrong.
func (l *Learner) suspects(ctx context.Context, f *Failure, class Class, flaky float64, said []string) (out []ci.Suspect, since string) {
	x := f.execution()
	l.mu.Lock()
	refs := slices.Clone(l.greens[greenKey(&x)])
	l.mu.Unlock()
	if len(refs) == 0 || f.Machine {
		return nil, ""
	}
	was := refs[0]
	for _, r := range refs {
		if r.Branch == f.Branch {
			was = r
			break
		}
	}
	if was.SHA == "" { // kept before commits were
		run, err := l.store.Run(ctx, was.Run)
		if err != nil {
			return nil, ""
		}
		was.SHA = run.SHA
	}
	type suspect struct {
		ci.Suspect
		weight float64
	}
	var all []suspect
	add := func(kind, name, why string, weight float64) {
		all = append(all, suspect{ci.Suspect{Kind: kind, Name: clip(name, maxSuspectNameLn), Why: why}, weight})
	}
	if f.Commits != nil {
		commits, err := f.Commits(ctx, was.SHA)
		if err != nil {
			l.log.Debug("the commits since the last pass cannot be read", "run", f.Run, "err", err)
		}
		told := mentions(said, f.Lines)
		for _, c := range commits[:min(len(commits), MaxCommits)] {
			w, why := l.blame(&x, &c, told)
			name := "what is not committed"
			if c.SHA != "" {
				name = short(c.SHA)
				if c.Subject != "" {
					name += " " + c.Subject
				}
			}
			add("commit", name, why, w)
			for _, file := range c.Files[:min(len(c.Files), maxCommitFiles)] {
				if lockFile(file) {
					v := lockWeight
					if class == ClassMissing || class == ClassRegistry || class == ClassCompile {
						v *= 3
					}
					add("lock file", file, "changed by "+name[:min(len(name), 10)], v)
				}
			}
		}
	}
	if f.Image != "" && was.Image != "" && f.Image != was.Image {
		w := imageWeight
		switch class {
		case ClassMissing, ClassPermission, ClassCrash, ClassDisk, ClassMemory:
			w *= 3
		}
		add("image", f.Image, "it passed on "+clip(was.Image, 60), w)
	}
	if f.Host != "" && was.Host != "" && f.Host != was.Host {
		w := hostWeight
		if class.Transient() || class == ClassDisk || class == ClassMemory || class == ClassRunner {
			w *= 4
		}
		add("host", f.Host, "it passed on "+clip(was.Host, 60), w)
	}
	before, now := l.actions(ctx, was.Run, f.JobKey), l.actions(ctx, f.Run, f.JobKey)
	for name, version := range now {
		if old, ok := before[name]; ok && old != version {
			w := actionWeight
			if strings.HasPrefix(f.Command, name+"@") {
				w *= 6
			}
			add("action", name+"@"+version, "it passed with "+clip(old, 60), w)
		}
	}
	if len(all) == 0 {
		return nil, was.SHA
	}
	byScore(all, func(s suspect) float64 { return s.weight })
	sum := 0.0
	for _, s := range all {
		sum += s.weight
	}
	for _, s := range all[:min(len(all), maxSuspects)] {
		s.P = (1 - flaky) * s.weight / sum
		out = append(out, s.Suspect)
	}
	if flaky >= .1 {
		out = append(out, ci.Suspect{Kind: "chance", Name: "nothing that changed", Why: "failures like this pass again by themselves", P: flaky})
		byScore(out, func(s ci.Suspect) float64 { return s.P })
	}
	return out, was.SHA
}

// blame weighs a commit, and says why.
func (l *Learner) blame(x *Execution, c *Commit, told map[string]float64) (weight float64, why string) {
	var reasons []string
	overlap, which := 0.0, ""
	files := c.Files[:min(len(c.Files), maxCommitFiles)]
	docs := len(files) > 0
	for _, file := range files {
		if o := overlaps(file, told); o > overlap {
			overlap, which = o, file
		}
		docs = docs && document(file)
	}
	if overlap > 0 {
		reasons = append(reasons, "changes "+clip(which, 80)+", which the failure names")
		if overlap < .75 {
			reasons[0] = "changes " + clip(which, 80) + ", near what the failure names"
		}
	}
	size := .5
	switch {
	case c.Lines >= 0:
		size = math.Log1p(float64(c.Lines)) / math.Log1p(2000)
		reasons = append(reasons, plural(c.Lines, "line"))
	case len(files) > 0:
		size = math.Log1p(float64(len(c.Files))) / math.Log1p(100)
		reasons = append(reasons, plural(len(c.Files), "file"))
	}
	weight = (commitWeight + min(size, 1)) * (1 + overlapWeight*overlap)
	if docs && overlap == 0 {
		weight *= docWeight
		reasons = append(reasons, "only documents")
	}
	if c.Author != "" {
		keys := keysOf(&Execution{Unit: unitRun, Repo: x.Repo, Change: Change{Author: c.Author}})
		l.mu.Lock()
		if k := l.model.kinAt(&keys, keys.author); k != nil && k.n >= 5 {
			times := min(max((k.failed+2)/(k.expected+2), .5), 2)
			weight *= times
			if times > 1.3 {
				reasons = append(reasons, "its author's runs fail more often than others")
			}
		}
		l.mu.Unlock()
	}
	return weight, strings.Join(reasons, "; ")
}

// pathLike are the words of an output that may name a file.
var pathLike = regexp.MustCompile(`[A-Za-z0-9_@+-][A-Za-z0-9_@+./\\-]*\.[A-Za-z][A-Za-z0-9]{0,7}\b`)

// mentions are the paths that an output names, with how much that counts: most in the
// lines that say what went wrong.
func mentions(said, lines []string) map[string]float64 {
	out := map[string]float64{}
	take := func(lines []string, weight float64) {
		for _, l := range lines {
			for _, m := range pathLike.FindAllString(clipBytes(Clean(clipBytes(l, 4*maxWidth)), 4*maxWidth), 20) {
				m = path.Clean(strings.ReplaceAll(m, `\`, "/"))
				if len(out) < maxMentions && out[m] < weight {
					out[m] = weight
				}
			}
		}
	}
	take(said, 1)
	take(lines[max(len(lines)-suspectLines, 0):], .4)
	return out
}

// overlaps says how much a changed file is what a failure names, from 0 to 1.
func overlaps(file string, told map[string]float64) (most float64) {
	file = path.Clean(file)
	dir, base := path.Split(file)
	dir = strings.TrimSuffix(dir, "/")
	stem := stemOf(base)
	for m, weight := range told {
		other, name := path.Split(m)
		other = strings.TrimSuffix(other, "/")
		o := 0.0
		switch {
		case m == file, strings.HasSuffix(m, "/"+file), strings.Contains(m, "/") && strings.HasSuffix(file, "/"+m):
			o = 1
		case name == base:
			o = .8
		case len(stem) >= 4 && stem == stemOf(name): // a file and its test
			o = .6
		case dir != "" && (other == dir || strings.HasSuffix(other, "/"+dir)):
			o = .4
		}
		most = max(most, o*weight)
	}
	return most
}

// stemOf is the name of a file without its ending, and without what makes it a test.
func stemOf(base string) string {
	stem, _, _ := strings.Cut(strings.ToLower(base), ".")
	for _, affix := range [...]string{"test_", "spec_"} {
		stem = strings.TrimPrefix(stem, affix)
	}
	for _, affix := range [...]string{"_test", "_spec", "-test", "test", "tests"} {
		stem = strings.TrimSuffix(stem, affix)
	}
	switch stem {
	case "index", "main", "init", "__init__", "util", "utils", "setup", "conf", "config":
		return ""
	}
	return stem
}

func document(file string) bool {
	switch path.Ext(strings.ToLower(file)) {
	case ".md", ".rst", ".adoc":
		return true
	}
	return false
}

// lockFile reports whether a file pins what is fetched.
func lockFile(file string) bool {
	switch base := path.Base(file); base {
	case "go.sum", "package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "Cargo.lock", "poetry.lock", "uv.lock",
		"Pipfile.lock",
		"requirements.txt", "Gemfile.lock", "composer.lock", "mix.lock", "flake.lock", "gradle.lockfile", "Podfile.lock", "pubspec.lock":
		return true
	}
	return false
}

// actions are the versions of the actions that a job's steps use, by name.
func (l *Learner) actions(ctx context.Context, run, job string) map[string]string {
	jobs, err := l.store.Jobs(ctx, run)
	if err != nil {
		return nil
	}
	out := map[string]string{}
	for _, j := range jobs {
		if j.Key != job {
			continue
		}
		steps, err := l.store.Steps(ctx, j.ID)
		if err != nil {
			return nil
		}
		for _, s := range steps {
			if name, version, ok := strings.Cut(strings.TrimSpace(s.Command), "@"); ok && strings.Contains(name, "/") &&
				!strings.ContainsAny(s.Command, " \n\t$") {
				out[name] = version
			}
		}
	}
	return out
}
