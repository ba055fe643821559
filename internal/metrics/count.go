package metrics

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
)

// Counts counts answers by their HTTP status. The zero Counts is ready.
type Counts struct {
	mu sync.Mutex
	n  map[int]int64
}

// Add counts one. A status that is none counts as 0.
func (c *Counts) Add(status int) {
	if status < 100 || status > 599 {
		status = 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[int]int64{}
	}
	c.n[status]++
}

// Samples are the counts by code.
func (c *Counts) Samples(name, help string) []Sample {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Sample
	for _, code := range slices.Sorted(maps.Keys(c.n)) {
		out = append(out, Sample{Name: name, Help: help, Kind: "counter", Label: "code", Of: strconv.Itoa(code), Value: float64(c.n[code])})
	}
	return out
}

// Wrap counts what next answers.
func (c *Counts) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := &status{ResponseWriter: w, code: http.StatusOK}
		defer func() { c.Add(seen.code) }()
		next.ServeHTTP(seen, r)
	})
}

type status struct {
	http.ResponseWriter
	code  int
	wrote bool
}

func (s *status) WriteHeader(code int) {
	if !s.wrote {
		s.code, s.wrote = code, true
	}
	s.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.NewResponseController reach the connection.
func (s *status) Unwrap() http.ResponseWriter { return s.ResponseWriter }
