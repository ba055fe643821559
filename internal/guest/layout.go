package guest

import "path"

// Where things are in our images, whoever runs something there.
const (
	Home      = "/home/runner"
	Tools     = "/opt/hearth" // of the tools disk: Node, npm
	ToolCache = "/opt/hostedtoolcache"
	// Glibc is of the container engine's disk: what Node takes of a C library, for
	// containers that have another.
	Glibc = "/usr/libexec/hearth/glibc"
	// GlibcInside is where containers have it. The loader in it looks there for libraries
	// first, and so under no other path.
	GlibcInside = "/__g"

	// Engine is the name by which [Client.Dial] reaches the container engine's API, in
	// images that have one.
	Engine       = "docker"
	engineSocket = "/run/docker.sock"

	systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// ToolPath is PATH with the tools; the agent's own is without.
	ToolPath = Tools + "/bin:" + Tools + "/node24/bin:" + systemPath
)

// InHome makes a path in the machine absolute: one that is not, or begins with ~/, is
// below the runner's home.
func InHome(p string) string {
	if len(p) > 1 && p[:2] == "~/" {
		p = p[2:]
	}
	if !path.IsAbs(p) {
		p = path.Join(Home, p)
	}
	return path.Clean(p)
}
