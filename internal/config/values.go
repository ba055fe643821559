package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"syscall"
)

// Values are secrets, or variables, of organisations, repositories and their
// environments, read from a directory. A nil Values has none.
//
//	org/OWNER                     of all repositories of an owner
//	repo/OWNER/NAME               of one repository; over those of its owner
//	env/OWNER/NAME/ENVIRONMENT    of jobs with that environment:; over both
//	dependabot/org/OWNER          for what Dependabot starts, which sees none of
//	dependabot/repo/OWNER/NAME    the others
//
// A file holds NAME=value a line. Everything is read once, into memory, and found
// by comparing names: no name that a workflow gives ever becomes a path. A file
// name is escaped as in a URL where an environment's name has other characters
// than a file's may (production%2Feu).
type Values struct {
	sets map[string]map[string]string // by place, in lower case: "repo/acme/app"
	envs map[string][]string          // by "acme/app": names of environments, in lower case
}

const (
	maxValuesFile = 1 << 20 // bytes
	maxValueFiles = 10_000
)

var valueName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ReadValues reads a directory. All that is wrong with it is said at once. Secret
// ones may be read by their owner only.
func ReadValues(dir string, secret bool) (*Values, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	v := &Values{sets: map[string]map[string]string{}, envs: map[string][]string{}}
	var errs []error
	files, open := 0, false
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := fs.Stat(root.FS(), name)
		if err != nil {
			return err
		}
		switch mode := info.Mode(); {
		case !ours(info):
			errs = append(errs, fmt.Errorf("%s belongs to another user", path.Join(dir, name)))
			return nil
		case secret && mode.Perm()&0o077 != 0, mode.Perm()&0o022 != 0:
			open = true
		}
		if e.IsDir() {
			return nil
		}
		if !info.Mode().IsRegular() {
			errs = append(errs, fmt.Errorf("%s is not a file", path.Join(dir, name)))
			return nil
		}
		if files++; files > maxValueFiles {
			return fmt.Errorf("more than %d files", maxValueFiles)
		}
		if err := v.read(root, name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path.Join(dir, name), err))
		}
		return nil
	})
	if open && secret {
		errs = append(errs, fmt.Errorf("%s, or something in it, is readable by others: chmod -R go= %s", dir, dir))
	} else if open {
		errs = append(errs, fmt.Errorf("%s, or something in it, can be written by others: chmod -R go-w %s", dir, dir))
	}
	if err = errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	return v, nil
}

func ours(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && (st.Uid == 0 || int(st.Uid) == os.Getuid())
}

// read takes in one file.
func (v *Values) read(root *os.Root, name string) error {
	parts := strings.Split(name, "/")
	kind, rest := parts[0], parts[1:]
	if kind == "dependabot" && len(rest) > 0 && rest[0] != "env" {
		kind, rest = rest[0], rest[1:]
	}
	want := map[string]int{"org": 1, "repo": 2, "env": 3}[kind]
	if want == 0 || len(rest) != want || !ownerName.MatchString(rest[0]) || want > 1 && !validRepo(rest[1]) {
		return errors.New("it is none of org/OWNER, repo/OWNER/NAME, env/OWNER/NAME/ENVIRONMENT, dependabot/org/OWNER, dependabot/repo/OWNER/NAME")
	}
	if want == 3 {
		env, err := url.PathUnescape(rest[2])
		if err != nil {
			return fmt.Errorf("its name is no escaped environment: %w", err)
		}
		repo := strings.ToLower(rest[0] + "/" + rest[1])
		v.envs[repo] = append(v.envs[repo], strings.ToLower(env))
		parts[3] = env
	}
	place := strings.ToLower(strings.Join(parts, "/"))
	if _, twice := v.sets[place]; twice {
		return errors.New("the same is there in other letters' case, which does not count")
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxValuesFile+1))
	if err != nil {
		return err
	}
	if len(b) > maxValuesFile {
		return fmt.Errorf("it has more than %d bytes", maxValuesFile)
	}
	set := map[string]string{}
	var bad []error
	err = ParseLines(b, func(line int, name, value string) {
		up := strings.ToUpper(name)
		_, twice := set[up]
		switch {
		case !valueName.MatchString(name) || strings.HasPrefix(up, "GITHUB_"):
			bad = append(bad, fmt.Errorf("line %d: a name has letters, digits and _, does not begin with a digit, and not with GITHUB_", line))
		case twice:
			bad = append(bad, fmt.Errorf("line %d: %s is there twice", line, up))
		}
		set[up] = value
	})
	if err = errors.Join(append(bad, err)...); err != nil {
		return err
	}
	v.sets[place] = set
	return nil
}

// Of is what a repository's jobs have: its owner's, and over them its own. Names
// are in upper case.
func (v *Values) Of(repository string) map[string]string { return v.of("", repository) }

// Dependabot is what jobs have that Dependabot starts.
func (v *Values) Dependabot(repository string) map[string]string {
	return v.of("dependabot/", repository)
}

func (v *Values) of(kind, repository string) map[string]string {
	out := map[string]string{}
	if v == nil {
		return out
	}
	repository = strings.ToLower(repository)
	owner, _, _ := strings.Cut(repository, "/")
	maps.Copy(out, v.sets[kind+"org/"+owner])
	maps.Copy(out, v.sets[kind+"repo/"+repository])
	return out
}

// Environments is what a repository's environments have, by their names in lower
// case.
func (v *Values) Environments(repository string) map[string]map[string]string {
	out := map[string]map[string]string{}
	if v == nil {
		return out
	}
	repository = strings.ToLower(repository)
	for _, env := range v.envs[repository] {
		out[env] = maps.Clone(v.sets["env/"+repository+"/"+env])
	}
	return out
}
