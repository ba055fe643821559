package git

import (
	"context"
	"net/url"
	"path"
	"strings"
)

// Module is a submodule as a checkout holds it: a commit of another repository.
type Module struct {
	Name string // in .gitmodules; "" if that says nothing of the path
	Path string // below the working tree's top
	URL  string // where it is fetched from, made absolute; relative if the checkout has no origin
	SHA  string // the commit that the tree names
	Skip bool   // .gitmodules says that it is not brought (update = none)
}

// maxModules bounds the file .gitmodules, in bytes.
const maxModules = 1 << 20

// modules joins the submodules of a tree with what its .gitmodules says of them. The
// file is somebody else's: of it a name, an address and whether to leave the submodule
// out are taken, as text; the program that it may name as `update` is not, nor are
// includes read.
func modules(ctx context.Context, file []byte, origin string, links []Module) ([]Module, error) {
	if len(links) == 0 {
		return nil, nil
	}
	cmd := program(ctx, "/", append(environment(), "GIT_DIR=/dev/null"), "config", "--file", "-", "--no-includes", "-z", "--list")
	cmd.Stdin = strings.NewReader(string(file))
	out, err := run(ctx, cmd, "config")
	if err != nil {
		return nil, err
	}
	said, named := map[string]*Module{}, map[string]*Module{}
	for _, kv := range parts(out) {
		k, v, _ := strings.Cut(kv, "\n")
		section, key, ok := cutLast(k, ".")
		name, isModule := strings.CutPrefix(section, "submodule.")
		if !ok || !isModule || !moduleName(name) {
			continue
		}
		m := named[name]
		if m == nil {
			m = &Module{Name: name}
			named[name] = m
		}
		switch key { // git prints it in small letters
		case "path":
			said[path.Clean(v)] = m
		case "url":
			m.URL = v
		case "update":
			m.Skip = v == "none"
		}
	}
	for i, l := range links {
		if m := said[l.Path]; m != nil {
			links[i].Name, links[i].URL, links[i].Skip = m.Name, resolve(origin, m.URL), m.Skip
		}
	}
	return links, nil
}

// moduleName says whether a name may be one of a submodule: it becomes a path below
// .git/modules.
func moduleName(name string) bool {
	for part := range strings.FieldsFuncSeq(name, func(r rune) bool { return r == '/' || r == '\\' }) {
		if part == ".." {
			return false
		}
	}
	return name != ""
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// resolve makes the address of a submodule absolute, as git does: one that begins with
// ./ or ../ is relative to the address of the repository that it is in.
func resolve(origin, address string) string {
	if origin == "" || !strings.HasPrefix(address, "./") && !strings.HasPrefix(address, "../") {
		return address
	}
	base := strings.TrimRight(origin, "/")
	for {
		if rest, ok := strings.CutPrefix(address, "./"); ok {
			address = rest
			continue
		}
		rest, ok := strings.CutPrefix(address, "../")
		if !ok {
			break
		}
		up, _, cut := cutLast(base, "/")
		if !cut || strings.HasSuffix(up, ":/") || strings.HasSuffix(up, "/") {
			return address // leads out of the server
		}
		base, address = up, rest
	}
	return base + "/" + strings.TrimRight(address, "/")
}

// OnServer takes the address of a repository on a server apart, in the forms that
// people write: https://server/owner/name.git, git@server:owner/name,
// ssh://git@server/owner/name. ok is false if it is on another server, or none at all.
func OnServer(server, address string) (owner, name string, ok bool) {
	s, err := url.Parse(server)
	if err != nil {
		return "", "", false
	}
	at := ""
	if rest, scp := strings.CutPrefix(address, "git@"+s.Hostname()+":"); scp && s.Host != "" {
		at = rest
	} else {
		u, err := url.Parse(address)
		if err != nil || u.RawQuery != "" || u.Fragment != "" {
			return "", "", false
		}
		switch {
		case u.Scheme == s.Scheme && strings.EqualFold(u.Host, s.Host):
		case (u.Scheme == "ssh" || u.Scheme == "git+ssh") && u.Hostname() != "" && strings.EqualFold(u.Hostname(), s.Hostname()):
		case (u.Scheme == "http" || u.Scheme == "git") && s.Scheme == "https" && strings.EqualFold(u.Host, s.Host): // never in the clear
		default:
			return "", "", false
		}
		rest, below := strings.CutPrefix(u.Path, strings.TrimRight(s.Path, "/")+"/")
		if !below {
			return "", "", false
		}
		at = rest
	}
	owner, name, ok = strings.Cut(strings.TrimSuffix(strings.Trim(at, "/"), ".git"), "/")
	return owner, name, ok && owner != "" && name != "" && !strings.Contains(name, "/")
}
