package config

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Retention is what is kept of what has ended, and how long. A zero sets no
// limit. What is in use is never removed, whatever the limits, and what was
// learned stays: it has bounds of its own.
type Retention struct {
	// Every is how often a server looks, by itself; 0 is never.
	Every Duration `json:"every"`

	// Runs with their records and logs. Age counts from their end, Runs a
	// repository's newest ones; Bytes bounds the database's rows and the log files
	// of all, RepositoryBytes those of one. Where all are too much, the repository
	// that takes most loses its oldest.
	Age             Duration `json:"age"`
	Runs            int      `json:"runs"`
	Bytes           Size     `json:"bytes"`
	RepositoryBytes Size     `json:"repository_bytes"`

	// JobLog and RunLog bound the log files of one job, and of one run's jobs
	// together, while they are written: a line says where it was cut off.
	JobLog Size `json:"job_log"`
	RunLog Size `json:"run_log"`

	// Events are deliveries that were handled: how long, how many of a repository,
	// and how many bytes of payload of a repository (without its payload a delivery
	// cannot be replayed, but is not taken twice either).
	Events     Duration `json:"events"`
	EventCount int      `json:"event_count"`
	EventBytes Size     `json:"event_bytes"`

	// Actions are the mirrors of repositories with actions: how long unused, and
	// how many bytes together.
	Actions     Duration `json:"actions"`
	ActionBytes Size     `json:"action_bytes"`

	// Artifacts is how long an artifact is kept at most, and ArtifactBytes how much of
	// a repository's; beyond it no more are taken. Caches is how long an unused cache
	// entry is kept, and CacheBytes how much of a repository's; beyond it those that
	// were not used for longest go. ResultBytes bounds all of them together.
	Artifacts     Duration `json:"artifacts"`
	ArtifactBytes Size     `json:"artifact_bytes"`
	Caches        Duration `json:"caches"`
	CacheBytes    Size     `json:"cache_bytes"`
	ResultBytes   Size     `json:"result_bytes"`

	// Containers are the manifests and layers of container images that jobs' machines
	// pulled: how long unused, and how many bytes together. Beyond them what was not used
	// for longest makes room.
	Containers     Duration `json:"containers"`
	ContainerBytes Size     `json:"container_bytes"`

	// Points are jobs' machines as they were before a step: how long, and how many bytes
	// together. What is worth least goes first. Without its template, which is an
	// image's, a point cannot be begun with.
	Points     Duration `json:"points"`
	PointBytes Size     `json:"point_bytes"`

	// Images, and the templates of machines made from them: how long unused, and
	// how many bytes together.
	Images     Duration `json:"images"`
	ImageBytes Size     `json:"image_bytes"`
}

// DefaultRetention is that of a fresh machine.
func DefaultRetention() Retention {
	const day = Duration(24 * time.Hour)
	return Retention{
		Every: Duration(time.Hour),
		Age:   90 * day, Runs: 5000, Bytes: 50 << 30, RepositoryBytes: 10 << 30, JobLog: 1 << 30, RunLog: 4 << 30,
		Events: 30 * day, EventCount: 20_000, EventBytes: 512 << 20,
		Actions: 30 * day, ActionBytes: 4 << 30,
		Artifacts: 90 * day, ArtifactBytes: 20 << 30, Caches: 7 * day, CacheBytes: 10 << 30, ResultBytes: 60 << 30,
		Containers: 30 * day, ContainerBytes: 10 << 30,
		Points: 7 * day, PointBytes: 8 << 30,
		Images: 30 * day, ImageBytes: 30 << 30,
	}
}

// LoadRetention is that of a command that has no file of settings: the defaults
// and the environment.
func LoadRetention(getenv func(string) string) (Retention, []error) {
	r := DefaultRetention()
	return r, r.environment(getenv)
}

// Setting is one value of a Retention by its name.
type Setting struct {
	Name  string // as in the file
	Help  string
	Value interface {
		String() string
		Set(string) error
		Type() string
	}
}

// Settings are the values that can be set one by one: as HEARTH_RETENTION_NAME,
// and as flags of `hearth gc`.
func (r *Retention) Settings() []Setting {
	return []Setting{
		{"age", "remove runs that ended so long ago", &r.Age},
		{"runs", "keep so many runs of a repository", (*count)(&r.Runs)},
		{"bytes", "keep so much of all runs together", &r.Bytes},
		{"repository_bytes", "keep so much of a repository's runs", &r.RepositoryBytes},
		{"events", "remove deliveries that came so long ago", &r.Events},
		{"event_count", "keep so many deliveries of a repository", (*count)(&r.EventCount)},
		{"event_bytes", "keep so much of a repository's deliveries", &r.EventBytes},
		{"actions", "remove mirrors of actions that were not used so long", &r.Actions},
		{"action_bytes", "keep so much of mirrors", &r.ActionBytes},
		{"artifacts", "keep an artifact so long at most", &r.Artifacts},
		{"artifact_bytes", "take so much of a repository's artifacts", &r.ArtifactBytes},
		{"caches", "remove cache entries that were not used so long", &r.Caches},
		{"cache_bytes", "keep so much of a repository's caches", &r.CacheBytes},
		{"result_bytes", "keep so much of artifacts and caches", &r.ResultBytes},
		{"containers", "remove container images' layers that were not pulled so long", &r.Containers},
		{"container_bytes", "keep so much of container images' layers", &r.ContainerBytes},
		{"points", "remove points in time of jobs that were made so long ago", &r.Points},
		{"point_bytes", "keep so much of points in time", &r.PointBytes},
		{"images", "remove images and templates that were not used so long", &r.Images},
		{"image_bytes", "keep so much of images and templates", &r.ImageBytes},
	}
}

func (r *Retention) environment(getenv func(string) string) (errs []error) {
	more := append(r.Settings(), Setting{"every", "", &r.Every}, Setting{"job_log", "", &r.JobLog}, Setting{"run_log", "", &r.RunLog})
	for _, s := range more {
		name := "HEARTH_RETENTION_" + strings.ToUpper(s.Name)
		if v := getenv(name); v != "" {
			if err := s.Value.Set(v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	return errs
}

// Validate names every problem.
func (r *Retention) Validate() (errs []error) {
	for _, s := range []struct {
		name  string
		value int64
		least int64
		want  string
	}{
		{"every", int64(r.Every), int64(time.Minute), "1m"},
		{"age", int64(r.Age), int64(time.Hour), "1h"}, {"events", int64(r.Events), int64(time.Hour), "1h"},
		{"actions", int64(r.Actions), int64(time.Hour), "1h"}, {"images", int64(r.Images), int64(time.Hour), "1h"},
		{"runs", int64(r.Runs), 1, "1"}, {"event_count", int64(r.EventCount), 1, "1"},
		{"bytes", int64(r.Bytes), 1 << 20, "1MiB"}, {"repository_bytes", int64(r.RepositoryBytes), 1 << 20, "1MiB"},
		{"job_log", int64(r.JobLog), 1 << 16, "64KiB"}, {"run_log", int64(r.RunLog), 1 << 16, "64KiB"},
		{"event_bytes", int64(r.EventBytes), 1 << 20, "1MiB"}, {"action_bytes", int64(r.ActionBytes), 1 << 20, "1MiB"},
		{"image_bytes", int64(r.ImageBytes), 1 << 20, "1MiB"}, {"result_bytes", int64(r.ResultBytes), 1 << 20, "1MiB"},
		{"containers", int64(r.Containers), int64(time.Hour), "1h"}, {"container_bytes", int64(r.ContainerBytes), 1 << 20, "1MiB"},
		{"artifacts", int64(r.Artifacts), int64(time.Hour), "1h"}, {"caches", int64(r.Caches), int64(time.Hour), "1h"},
		{"artifact_bytes", int64(r.ArtifactBytes), 1 << 20, "1MiB"}, {"cache_bytes", int64(r.CacheBytes), 1 << 20, "1MiB"},
	} {
		if s.value != 0 && s.value < s.least {
			errs = append(errs, fmt.Errorf("retention.%s: want at least %s, or 0 for no limit", s.name, s.want))
		}
	}
	if r.JobLog == 0 || r.RunLog == 0 {
		errs = append(errs, fmt.Errorf("retention.job_log and run_log cannot be without a limit: a job that prints for ever would fill the disk"))
	}
	return errs
}

// Size is a number of bytes that reads as "512MiB", "10GiB" or a number.
type Size int64

// sizeUnits, the largest first.
var sizeUnits = []struct {
	name string
	n    int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}}

// String is the size as text.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.n == 0 {
			return strconv.FormatInt(int64(s)/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Set reads the size from text, as a flag.
func (s *Size) Set(text string) error {
	number, unit := strings.TrimSpace(text), int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(n), u.n
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf(`%q is no size: want one like "512MiB", "10GiB"`, text)
	}
	*s = Size(n * unit)
	return nil
}

// Type names the kind of value for a flag's help.
func (s *Size) Type() string { return "size" }

// MarshalJSON writes the size as text.
func (s Size) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// UnmarshalJSON reads the size from text or a number.
func (s *Size) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		text = string(b)
	}
	return s.Set(text)
}

// count is a number as a Setting.
type count int

func (c *count) String() string { return strconv.Itoa(int(*c)) }

func (c *count) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is no number of things to keep", text)
	}
	*c = count(n)
	return nil
}

func (c *count) Type() string { return "number" }
