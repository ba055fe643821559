package main

import (
	"cmp"
	"log/slog"
	"math"
	"time"

	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/results"
)

// resultsStore is where artifacts and caches are kept, of runs of this command and of
// a server alike.
func resultsStore(dirs config.Dirs, keep config.Retention, log *slog.Logger) *results.Store {
	return results.New(results.Config{Dir: dirs.Results(), Log: log, Limits: results.Limits{
		ArtifactBytes: unlimited(int64(keep.ArtifactBytes)), CacheBytes: unlimited(int64(keep.CacheBytes)), Age: time.Duration(unlimited(int64(keep.Artifacts)))}})
}

// unlimited is a setting of which 0 sets no limit: what no disk has room for, as a
// time 290 years.
func unlimited(n int64) int64 { return cmp.Or(n, math.MaxInt64) }
