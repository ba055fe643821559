package hearth_test

import (
	"encoding/json"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hearth-ci/hearth"

// layer says what a package may import of ours, and of others.
type layer struct {
	ours   []string // packages of ours, without internal/; "*" is everything
	others []string // module path prefixes outside the standard library; "*" is everything
}

// layers is ARCHITECTURE.md's table, executable. A package that is not listed
// fails the test: say here what it may see before it sees anything. What keeps
// the pieces replaceable are the absences: the engine never sees a VM, the
// language packages never see the world, leaves see nothing at all.
var layers = map[string]layer{
	"ci":                    {},
	"expr":                  {},
	"text":                  {},
	"mask":                  {ours: []string{"ci", "text"}},
	"command":               {ours: []string{"text"}},
	"guest":                 {},
	"vm":                    {},
	"graph":                 {},
	"archive":               {},
	"git":                   {},
	"config":                {ours: []string{"network"}, others: []string{"go.yaml.in/yaml"}},
	"door":                  {},
	"metrics":               {},
	"oidc":                  {others: []string{"github.com/golang-jwt/jwt"}},
	"results":               {},
	"registry":              {ours: []string{"network"}},
	"registry/registrytest": {},
	"workflow":              {ours: []string{"ci", "expr"}, others: []string{"go.yaml.in/yaml"}},
	"lint":                  {ours: []string{"expr", "workflow"}},
	"plan":                  {ours: []string{"ci", "expr", "workflow"}},
	"plan/show":             {ours: []string{"expr", "plan", "workflow"}},
	"action":                {ours: []string{"expr", "git", "workflow"}},
	"source":                {ours: []string{"action", "archive", "git"}},
	"docker":                {},
	"docker/dockertest":     {},
	"engine":                {ours: []string{"archive", "ci", "docker", "expr", "workflow", "plan", "action", "command", "git", "mask", "guest"}},

	"guest/boot": {ours: []string{"guest"}, others: []string{"golang.org/x/sys"}},
	"network":    {others: []string{"gvisor.dev/gvisor", "golang.org/x/sys", "golang.org/x/net/dns/dnsmessage"}},

	// The walls around a monitor, and what runs in the child that builds them: small.
	"vm/jail":   {others: []string{"golang.org/x/sys"}},
	"vm/vmtest": {ours: []string{"vm", "vm/jail", "guest"}},
	"vm/qemu":   {ours: []string{"vm", "vm/jail", "vm/vmm"}, others: []string{"golang.org/x/sys"}},
	"vm/vmm":    {ours: []string{"vm", "vm/jail"}, others: []string{"github.com/klauspost/compress"}},
	// Firecracker in one of our own QEMU machines, for its tests only.
	"vm/firecracker/nested": {ours: []string{"guest", "image", "vm", "vm/qemu"}},
	"image/imagetest":       {ours: []string{"image"}},
	// Who wants a driver asks here: one order of looking for them.
	"vm/drivers":     {ours: []string{"vm", "vm/firecracker", "vm/jail", "vm/qemu"}},
	"vm/firecracker": {ours: []string{"vm", "vm/jail", "vm/vmm"}, others: []string{"golang.org/x/sys"}},
	"image":          {ours: []string{"archive", "vm", "guest"}, others: []string{"github.com/google/go-containerregistry", "github.com/pierrec/lz4", "golang.org/x/sys", "golang.org/x/mod", "github.com/CycloneDX/cyclonedx-go"}},
	// The table of what images take from npm, and the program that keeps it.
	"image/pin": {},
	// Container images as machines' file systems.
	"image/erofs":      {},
	"image/oci":        {ours: []string{"image/erofs"}},
	"image/pin/update": {ours: []string{"archive", "image/pin"}},
	// What a machine is to those who work in one: no VM, no image, no disk.
	"machine":             {ours: []string{"guest", "network"}},
	"machine/machinetest": {ours: []string{"guest", "machine", "network"}},
	// Points in time are a machine's that is gone: sealed files, and no VM.
	"point": {ours: []string{"guest", "machine", "network"}},
	"pool":  {ours: []string{"vm", "vm/vmm", "guest", "image", "machine", "network"}, others: []string{"golang.org/x/sys"}},

	"queue": {ours: []string{"ci"}},
	"store": {ours: []string{"ci", "graph", "queue", "text"}, others: []string{"modernc.org/sqlite", "github.com/jackc/pgx", "github.com/pressly/goose"}},
	// Learning exactly once takes one transaction over the cursor and what was learned.
	"learn":           {ours: []string{"ci", "graph", "store", "suite"}},
	"suite":           {},
	"store/storetest": {ours: []string{"store"}},

	"forge":           {ours: []string{"ci"}},
	"forge/github":    {ours: []string{"ci", "forge"}, others: []string{"github.com/google/go-github", "github.com/bradleyfalzon/ghinstallation", "github.com/golang-jwt/jwt"}},
	"webhook":         {ours: []string{"ci", "door", "workflow"}},
	"launch":          {ours: []string{"ci", "expr", "workflow", "plan", "engine"}},
	"compat":          {ours: []string{"ci", "expr", "workflow", "plan", "engine", "launch"}},
	"prompt":          {ours: []string{"workflow", "expr"}},
	"dispatch":        {ours: []string{"ci", "board", "expr", "launch", "ledger", "workflow", "plan", "engine", "action", "source", "conduct", "desk", "worker", "queue", "store", "learn", "forge", "git", "oidc", "registry", "results", "webhook", "network", "image", "machine", "config"}},
	"front/fronttest": {ours: []string{"ci", "learn", "store", "suite"}},
	"front":           {ours: []string{"ci", "learn", "results", "store", "web", "webhook"}},
	"conduct":         {ours: []string{"ci", "expr", "mask", "plan"}},
	"desk":            {ours: []string{"ci", "conduct", "queue", "worker"}},
	"worker":          {ours: []string{"ci", "conduct", "expr", "machine", "mask", "workflow", "plan", "engine", "guest", "learn", "action", "network", "oidc", "registry", "results", "suite", "archive"}},
	// What a worker on another host and its server say to each other.
	"remote":  {ours: []string{"action", "ci", "conduct", "desk", "engine", "expr", "git", "learn", "mask", "network", "plan", "queue", "results", "suite", "worker", "workflow"}},
	"session": {ours: []string{"guest", "machine"}},

	"worker/behaviourtest": {ours: []string{"ci"}},

	"api":        {ours: []string{"board", "ci", "door", "graph", "guest", "history", "learn", "machine", "network", "session"}, others: []string{"github.com/golang-jwt/jwt"}},
	"history":    {ours: []string{"ci", "graph", "guest", "learn", "mask"}},
	"hold":       {ours: []string{"ci", "guest", "history", "machine", "session", "vm"}},
	"retention":  {ours: []string{"action", "config", "image", "learn", "point", "registry", "results", "store"}},
	"ledger":     {ours: []string{"ci", "learn", "store"}},
	"board":      {ours: []string{"ci", "markdown", "text"}},
	"markdown":   {others: []string{"github.com/yuin/goldmark", "golang.org/x/net/html"}},
	"web":        {ours: []string{"ci", "board", "door", "markdown", "text"}},
	"tui":        {ours: []string{"ci", "board"}, others: []string{"charm.land", "github.com/charmbracelet", "golang.org/x/term"}},
	"bench":      {ours: []string{"*"}},
	"":           {ours: []string{"archive", "ci", "config", "engine", "expr", "graph", "guest", "history", "image", "launch", "learn", "ledger", "machine", "mask", "network", "plan", "pool", "prompt", "registry", "session", "store", "vm", "vm/drivers", "vm/jail", "webhook", "worker", "workflow"}},
	"cmd/hearth": {ours: []string{"*"}, others: []string{"*"}},

	"scripts/mutate": {},

	// The agent is PID 1 of every machine: small, and the protocol's other end.
	"cmd/hearth-guest": {ours: []string{"guest", "guest/boot"}},
}

func TestLayers(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := short(p.ImportPath)
		may, ok := find(name)
		if !ok {
			t.Errorf("%s is in no layer: add it to layers, and to ARCHITECTURE.md", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			switch {
			case imp == "C" || !strings.Contains(strings.Split(imp, "/")[0], "."):
				// the standard library
			case imp == module || strings.HasPrefix(imp, module+"/"):
				dep := short(imp)
				if !allowed(may.ours, dep) && !strings.HasPrefix(dep, name+"/") {
					t.Errorf("%s imports %s: its layer may not (see layers_test.go)", name, dep)
				}
			default:
				if !slices.ContainsFunc(may.others, func(o string) bool {
					return o == "*" || imp == o || strings.HasPrefix(imp, o+"/")
				}) {
					t.Errorf("%s imports %s from outside: its layer may not (see layers_test.go)", name, imp)
				}
			}
		}
	}
}

// What is for tests stays in them: the program that people run has no fake GitHub,
// no fake machines and none of the testing package.
func TestNothingForTestsInTheProduct(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./cmd/hearth", "./cmd/hearth-guest", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for p := range strings.FieldsSeq(string(out)) {
		name := short(p)
		if p == "testing" || p == "net/http/httptest" || strings.HasPrefix(p, module) && strings.HasSuffix(name, "test") {
			t.Errorf("the product imports %s", p)
		}
	}
}

// find looks a package up, or the nearest listed parent: a package's own
// sub-packages (fakes, test suites) live in its layer.
func find(name string) (layer, bool) {
	for n := name; ; n = path.Dir(n) {
		if l, ok := layers[n]; ok && (n != "" || name == "") {
			return l, true
		}
		if !strings.Contains(n, "/") {
			return layer{}, false
		}
	}
}

func short(imp string) string {
	return strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(imp, module), "/"), "internal/")
}

func allowed(list []string, dep string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, dep)
}
