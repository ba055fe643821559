// Package config is the manual of what can be set, and where Hearth keeps
// things. [Config] is every setting of `hearth serve`; [Dirs] is where state
// lives for every command.
//
// Settings come, later over earlier, from the defaults below, a JSON file, and
// HEARTH_* environment variables; flags are the commands' own business.
// [Config.Validate] names all problems at once, each with what to do.
package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Dirs is where Hearth keeps things. All three exist after [Dirs.Make].
type Dirs struct {
	Cache string // images, templates, actions: can be deleted at any time, costs a rebuild
	State string // hearth.db and logs: the record and what was learned
	Run   string // sockets and machines' private directories: empty when nothing runs
	// Shared is where servers on one database keep what all of them show and use: logs,
	// artifacts, caches, logins, the keys of jobs' tokens. "" is State.
	Shared string
}

// FindDirs resolves the directories: $HEARTH_HOME/{cache,state,run} if that is
// set, the XDG directories otherwise; and $HEARTH_SHARED.
func FindDirs(getenv func(string) string) (Dirs, error) {
	d, err := findDirs(getenv)
	if shared := getenv("HEARTH_SHARED"); err == nil && shared != "" {
		if !filepath.IsAbs(shared) {
			return Dirs{}, fmt.Errorf("HEARTH_SHARED=%s: want an absolute path", shared)
		}
		d.Shared = filepath.Clean(shared)
	}
	return d, err
}

func findDirs(getenv func(string) string) (Dirs, error) {
	if home := getenv("HEARTH_HOME"); home != "" {
		abs, err := filepath.Abs(home)
		if err != nil {
			return Dirs{}, fmt.Errorf("HEARTH_HOME=%s: %w", home, err)
		}
		return Dirs{Cache: filepath.Join(abs, "cache"), State: filepath.Join(abs, "state"), Run: filepath.Join(abs, "run")}, nil
	}
	home := getenv("HOME")
	if home == "" {
		return Dirs{}, errors.New("neither HEARTH_HOME nor HOME is set: set HEARTH_HOME to a directory for images and records")
	}
	or := func(v, fallback string) string {
		if v != "" {
			return v
		}
		return fallback
	}
	d := Dirs{
		Cache: filepath.Join(or(getenv("XDG_CACHE_HOME"), filepath.Join(home, ".cache")), "hearth"),
		State: filepath.Join(or(getenv("XDG_STATE_HOME"), filepath.Join(home, ".local", "state")), "hearth"),
	}
	if rt := getenv("XDG_RUNTIME_DIR"); rt != "" {
		d.Run = filepath.Join(rt, "hearth")
	} else {
		d.Run = filepath.Join(os.TempDir(), "hearth-"+strconv.Itoa(os.Getuid()))
	}
	return d, nil
}

// Make creates the directories, readable by their owner only, and refuses a
// run directory that belongs to somebody else (it may lie in /tmp).
func (d Dirs) Make() error {
	for _, dir := range []string{d.Cache, d.State, d.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("creating %s: %w; set HEARTH_HOME to a directory you can write to", dir, err)
		}
	}
	if d.Shared != "" {
		if err := os.MkdirAll(d.Shared, 0o700); err != nil {
			return fmt.Errorf("creating HEARTH_SHARED: %w", err)
		}
	}
	return ownedByUs(d.Run)
}

func (d Dirs) shared() string { return cmp.Or(d.Shared, d.State) }

// Database is the path of the SQLite file.
func (d Dirs) Database() string { return filepath.Join(d.State, "hearth.db") }

// Logs is where the output of jobs is kept.
func (d Dirs) Logs() string { return filepath.Join(d.shared(), "logs") }

// Results is where artifacts and caches are kept.
func (d Dirs) Results() string { return filepath.Join(d.shared(), "results") }

// OIDC is where the keys are that sign jobs' tokens.
func (d Dirs) OIDC() string { return filepath.Join(d.shared(), "oidc") }

// Points is where points in time of jobs are kept, sealed, and the key to them.
func (d Dirs) Points() string { return filepath.Join(d.State, "points") }

// Running is where the locks of runs are that are under way.
func (d Dirs) Running() string { return filepath.Join(d.State, "running") }

// Spool is where large deliveries lie, without names, until they are verified.
// It is no tmpfs: they are there to stay out of memory.
func (d Dirs) Spool() string { return filepath.Join(d.State, "spool") }

// Passes is the file of logins, and of tokens that were taken back.
func (d Dirs) Passes() string { return filepath.Join(d.shared(), "passes.json") }

// Registry is where container images are kept that jobs have pulled.
func (d Dirs) Registry() string { return filepath.Join(d.Cache, "registry") }

// Images is where kernels, root file systems and templates are kept.
func (d Dirs) Images() string { return filepath.Join(d.Cache, "images") }

// Config is every setting of `hearth serve`.
type Config struct {
	// Listen is the address that webhooks, the API and the pages are served on.
	Listen string `json:"listen"`
	// URL is how GitHub and people reach it; details links point there.
	URL string `json:"url"`
	// Database is "" for the SQLite file of the state directory, a path, or a
	// postgres:// URL.
	Database string `json:"database"`
	// GitHub App: its id, the file with its private key (PEM), the secret that
	// its webhooks are signed with, and the API's base URL (set it for GitHub
	// Enterprise Server).
	AppID         int64  `json:"app_id"`
	AppKeyFile    string `json:"app_key_file"`
	WebhookSecret string `json:"-"` // HEARTH_WEBHOOK_SECRET or webhook_secret_file; never in the file itself
	SecretFile    string `json:"webhook_secret_file"`
	GitHubURL     string `json:"github_url"`
	// JWTSecret signs and checks the bearer tokens of the HTTP API (HS256).
	JWTSecret     string `json:"-"` // HEARTH_JWT_SECRET or jwt_secret_file
	JWTSecretFile string `json:"jwt_secret_file"`

	// MetricsToken is what a client of /metrics and /api/v1/queue brings; without it
	// they are for nobody, or with Metrics "open" for everybody.
	MetricsToken     string `json:"-"` // HEARTH_METRICS_TOKEN or metrics_token_file
	MetricsTokenFile string `json:"metrics_token_file"`
	Metrics          string `json:"metrics"`
	// Repositories says which repositories are served, and what is set for each.
	// None are by default: all of them has to be written, "*".
	Repositories Repositories `json:"repositories"`
	// SecretsDir holds the workflows' secrets, readable by its owner only, and
	// VarsDir their variables: of organisations, repositories and environments.
	// See [Values].
	SecretsDir string `json:"secrets_dir"`
	VarsDir    string `json:"vars_dir"`
	// SecretsFile was one file of secrets for everybody. It is refused.
	SecretsFile string `json:"secrets_file,omitempty"`
	// Driver is auto, qemu or firecracker.
	Driver string `json:"driver"`
	// Image is the image for all jobs and VMs, by name, recipe or id; "" is the default
	// image, and that of a recipe which is built for the jobs that ask for it.
	Image string `json:"image"`
	// Jail is "require", to run machines only behind all the walls that keep a
	// monitor from the host (`hearth doctor` lists them), or "best", to run with
	// those that can be had.
	Jail string `json:"jail"`
	// UIDBase is the first of the 4096 users that machines have, one each, where
	// hearth runs as root; 0 is 1900000000. No account may be among them.
	UIDBase int `json:"uid_base"`
	// Jobs is "here", where this server runs jobs beside its workers on other hosts, or
	// "elsewhere", where those run all of them and it makes no machine.
	Jobs string `json:"jobs"`
	// Machines is how many run at once; 0 asks the machine.
	Machines int `json:"machines"`
	// Warm is how many machines wait ready.
	Warm int `json:"warm"`
	// CPUs and MemoryMiB of one machine.
	CPUs      int `json:"cpus"`
	MemoryMiB int `json:"memory_mib"`
	// DiskMiB is a machine's own disk; it takes what is written to it. 0 is 14336.
	DiskMiB int64 `json:"disk_mib"`
	// MaxBody bounds a webhook's body, in bytes. GitHub's own limit is 25 MiB.
	MaxBody int64 `json:"max_body"`
	// SessionTTL is how long a VM asked for over HTTP lives unless it is
	// released sooner.
	SessionTTL Duration `json:"session_ttl"`
	// Learn is off, advise or act; [Repository.Learn] says it for some.
	Learn string `json:"learn"`
	// Labels are what this host answers to beside the default ones; a runner group is
	// group:NAME.
	Labels []string `json:"labels"`
	// Registries are container registries with another address than their name, or that
	// want to know who asks, by name: jobs' images come from there, through the host.
	Registries map[string]Registry `json:"registries"`
	// UnknownLabels is what becomes of labels that nobody here is known by: those with
	// a part that begins with ubuntu run on the default image ("ubuntu"), or none ("refuse").
	UnknownLabels string `json:"unknown_labels"`

	// Retention is what is kept, and how long.
	Retention Retention `json:"retention"`

	Doors
}

// MinDisk is the least disk of a machine, MiB.
const MinDisk = 256

// What UnknownLabels may be; "" is the first.
const (
	UnknownUbuntu = "ubuntu"
	UnknownRefuse = "refuse"
)

// What Jobs may be; "" is the first.
const (
	JobsHere      = "here"
	JobsElsewhere = "elsewhere"
)

// What Jail may be.
const (
	JailRequire = "require"
	JailBest    = "best"
)

// MaxSessionTTL is how long any session may live; see package session, which would
// cut what is longer.
const MaxSessionTTL = 7 * 24 * time.Hour

// Duration is a time.Duration that reads and writes as "90s", "15m", "30d".
type Duration time.Duration

// String is the duration as text.
func (d Duration) String() string {
	const day = Duration(24 * time.Hour)
	if d >= day && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	return time.Duration(d).String()
}

// Set reads the duration from text, as a flag.
func (d *Duration) Set(s string) error {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		if days, err := strconv.ParseUint(n, 10, 16); err == nil {
			*d = Duration(time.Duration(days) * 24 * time.Hour)
			return nil
		}
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf(`%q is no duration: want one like "15m", "36h", "30d"`, s)
	}
	*d = Duration(v)
	return nil
}

// Type names the kind of value for a flag's help.
func (d *Duration) Type() string { return "duration" }

// MarshalJSON writes the duration as text.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads the duration from text.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf(`a duration is text, like "15m": %w`, err)
	}
	return d.Set(s)
}

// Bounds of a machine's size.
const (
	maxCPUs   = 64
	minMemory = 128 // MiB
	maxMemory = 1 << 20
)

// Default is the configuration of a fresh machine.
func Default() Config {
	return Config{
		Listen:     "127.0.0.1:8787",
		GitHubURL:  "https://api.github.com",
		Driver:     "auto",
		Jail:       JailRequire,
		CPUs:       2,
		MemoryMiB:  1024,
		Warm:       1,
		MaxBody:    25 << 20,
		SessionTTL: Duration(15 * time.Minute),
		Learn:      "advise",
		Retention:  DefaultRetention(),
		Doors:      defaultDoors(),
	}
}

// Load reads file (none if "") over the defaults, then the environment over
// that, then the files that hold secrets. It does not validate.
func Load(file string, getenv func(string) string) (Config, error) {
	c := Default()
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return c, fmt.Errorf("configuration: %w", err)
		}
		defer f.Close()
		dec := json.NewDecoder(f)
		dec.DisallowUnknownFields()
		if err := dec.Decode(&c); err != nil {
			return c, fmt.Errorf("configuration %s: %w", file, err)
		}
	}
	var errs []error
	text := func(name string, p *string) {
		if v := getenv("HEARTH_" + name); v != "" {
			*p = v
		}
	}
	number := func(name string, set func(int64)) {
		if v := getenv("HEARTH_" + name); v != "" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				errs = append(errs, fmt.Errorf("HEARTH_%s=%q is not a whole number", name, v))
				return
			}
			set(n)
		}
	}
	text("LISTEN", &c.Listen)
	text("URL", &c.URL)
	text("DATABASE", &c.Database)
	text("APP_KEY_FILE", &c.AppKeyFile)
	text("WEBHOOK_SECRET", &c.WebhookSecret)
	text("WEBHOOK_SECRET_FILE", &c.SecretFile)
	text("GITHUB_URL", &c.GitHubURL)
	text("JWT_SECRET", &c.JWTSecret)
	text("JWT_SECRET_FILE", &c.JWTSecretFile)
	text("METRICS_TOKEN", &c.MetricsToken)
	text("METRICS_TOKEN_FILE", &c.MetricsTokenFile)
	text("METRICS", &c.Metrics)
	text("SECRETS_DIR", &c.SecretsDir)
	text("VARS_DIR", &c.VarsDir)
	text("SECRETS_FILE", &c.SecretsFile)
	if v := getenv("HEARTH_REPOSITORIES"); v != "" {
		c.Repositories = Repositories{}
		for pattern := range strings.SplitSeq(v, ",") {
			c.Repositories[strings.TrimSpace(pattern)] = Repository{}
		}
	}
	text("DRIVER", &c.Driver)
	text("IMAGE", &c.Image)
	text("JAIL", &c.Jail)
	text("UNKNOWN_LABELS", &c.UnknownLabels)
	text("LEARN", &c.Learn)
	text("LOGIN", &c.Login)
	if v := getenv("HEARTH_HOSTS"); v != "" {
		c.Hosts = strings.Split(v, ",")
	}
	number("UID_BASE", func(n int64) { c.UIDBase = int(n) })
	errs = append(errs, c.Retention.environment(getenv)...)
	number("APP_ID", func(n int64) { c.AppID = n })
	number("MACHINES", func(n int64) { c.Machines = int(n) })
	number("WARM", func(n int64) { c.Warm = int(n) })
	number("CPUS", func(n int64) { c.CPUs = int(n) })
	number("MEMORY_MIB", func(n int64) { c.MemoryMiB = int(n) })
	number("DISK_MIB", func(n int64) { c.DiskMiB = n })
	errs = append(errs, c.passwords())
	for _, s := range []struct {
		file string
		into *string
	}{{c.SecretFile, &c.WebhookSecret}, {c.JWTSecretFile, &c.JWTSecret}, {c.MetricsTokenFile, &c.MetricsToken}} {
		if s.file == "" || *s.into != "" {
			continue
		}
		b, err := os.ReadFile(s.file)
		if err != nil {
			errs = append(errs, fmt.Errorf("reading a secret: %w", err))
			continue
		}
		*s.into = strings.TrimRight(string(b), "\r\n")
	}
	return c, errors.Join(errs...)
}

// Validate names every problem at once.
func (c Config) Validate() error {
	var errs []error
	switch {
	case c.Metrics != "" && c.Metrics != "open":
		errs = append(errs, fmt.Errorf("metrics: %q: want \"open\", or nothing", c.Metrics))
	case c.MetricsToken != "" && (len(c.MetricsToken) < 16 || c.Metrics != ""):
		errs = append(errs, errors.New("metrics_token_file: want a token of at least 16 characters, and metrics not set"))
	}
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		bad("listen %q: want host:port, like 127.0.0.1:8787", c.Listen)
	}
	if c.URL != "" {
		if u, err := url.Parse(c.URL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			bad("url %q: want http(s)://host, the address under which people reach this server", c.URL)
		}
	}
	if u, err := url.Parse(c.GitHubURL); err != nil || u.Host == "" {
		bad("github_url %q: want https://api.github.com or https://HOST/api/v3", c.GitHubURL)
	}
	if c.AppID != 0 && c.AppKeyFile == "" {
		bad("app_id is set but app_key_file is not: name the PEM file that GitHub gave out for the App")
	}
	if c.AppID == 0 && c.AppKeyFile != "" {
		bad("app_key_file is set but app_id is not: it stands on the App's settings page")
	}
	if c.AppID != 0 && c.WebhookSecret == "" {
		bad("no webhook secret: set HEARTH_WEBHOOK_SECRET or webhook_secret_file to the secret of the App's webhook; unsigned deliveries are never accepted")
	}
	if n := len(c.JWTSecret); n > 0 && n < 32 {
		bad("the JWT secret has %d bytes; HS256 wants at least 32: try `openssl rand -hex 32`", n)
	}
	switch c.Driver {
	case "auto", "qemu", "firecracker":
	default:
		bad("driver %q: want auto, qemu or firecracker", c.Driver)
	}
	switch c.UnknownLabels {
	case "", UnknownUbuntu, UnknownRefuse:
	default:
		bad("unknown_labels %q: want %s or %s", c.UnknownLabels, UnknownUbuntu, UnknownRefuse)
	}
	switch c.Jobs {
	case "", JobsHere, JobsElsewhere:
	default:
		bad("jobs %q: want %s or %s", c.Jobs, JobsHere, JobsElsewhere)
	}
	switch c.Jail {
	case JailRequire, JailBest:
	default:
		bad("jail %q: want require or best", c.Jail)
	}
	if c.UIDBase != 0 && (c.UIDBase < 1000 || c.UIDBase > 1<<31-1-4096) {
		bad("uid_base %d: want the first of 4096 user ids that no account has, from 1000 to %d", c.UIDBase, 1<<31-1-4096)
	}
	if !learnModes[c.Learn] {
		bad("learn %q: want off, advise or act", c.Learn)
	}
	if c.CPUs < 1 || c.CPUs > maxCPUs {
		bad("cpus %d: want 1 to %d", c.CPUs, maxCPUs)
	}
	if c.DiskMiB != 0 && c.DiskMiB < MinDisk {
		bad("disk_mib %d: want at least %d", c.DiskMiB, MinDisk)
	}
	if c.MemoryMiB < minMemory || c.MemoryMiB > maxMemory {
		bad("memory_mib %d: want at least %d", c.MemoryMiB, minMemory)
	}
	if c.Machines < 0 || c.Warm < 0 {
		bad("machines and warm cannot be negative")
	}
	if c.MaxBody < 1<<10 {
		bad("max_body %d: want at least 1024 bytes", c.MaxBody)
	}
	errs = append(errs, c.Retention.Validate()...)
	errs = append(errs, c.Doors.validate()...)
	if c.SessionTTL <= 0 || time.Duration(c.SessionTTL) > MaxSessionTTL {
		bad("session_ttl must be positive, and at most %v", MaxSessionTTL)
	}
	errs = append(errs, c.Repositories.validate()...)
	if c.AppID != 0 && len(c.Repositories) == 0 {
		errs = append(errs, errNoRepositories)
	}
	if c.SecretsFile != "" {
		bad("secrets_file is gone: one file gave every repository's jobs the secrets of all. Name a directory as secrets_dir and put each secret where it belongs: " +
			"org/OWNER, repo/OWNER/NAME or env/OWNER/NAME/ENVIRONMENT, with NAME=value a line")
	}
	for _, d := range []struct {
		name, dir string
		secret    bool
	}{{"secrets_dir", c.SecretsDir, true}, {"vars_dir", c.VarsDir, false}} {
		if d.dir != "" {
			if _, err := ReadValues(d.dir, d.secret); err != nil {
				bad("%s: %w", d.name, err)
			}
		}
	}
	return errors.Join(errs...)
}

// learnModes are what may be done with what is learned.
var learnModes = map[string]bool{"off": true, "advise": true, "act": true}
