package github

import (
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Budget is what is known of GitHub's rate limit: that of the installation that has
// least left, until it is renewed.
type Budget struct {
	Limit, Remaining int
	Reset            time.Time
	// Answers counts them by status; 0 is none.
	Answers map[int]int64
}

// Budget reads what the answers so far said.
func (a *App) Budget() Budget { return a.meter.read() }

// meter looks at answers as they pass.
type meter struct {
	next http.RoundTripper

	mu  sync.Mutex
	now Budget
}

func (m *meter) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := m.next.RoundTrip(r)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now.Answers == nil {
		m.now.Answers = map[int]int64{}
	}
	if err != nil {
		m.now.Answers[0]++
		return resp, err
	}
	if code := resp.StatusCode; code >= 100 && code <= 599 {
		m.now.Answers[code]++
	}
	left, err1 := strconv.Atoi(resp.Header.Get("X-RateLimit-Remaining"))
	limit, err2 := strconv.Atoi(resp.Header.Get("X-RateLimit-Limit"))
	at, err3 := strconv.ParseInt(resp.Header.Get("X-RateLimit-Reset"), 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return resp, nil
	}
	if reset := time.Unix(at, 0); m.now.Limit == 0 || left <= m.now.Remaining || time.Now().After(m.now.Reset) {
		m.now.Limit, m.now.Remaining, m.now.Reset = limit, left, reset
	}
	return resp, nil
}

func (m *meter) read() Budget {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.now
	b.Answers = make(map[int]int64, len(m.now.Answers))
	maps.Copy(b.Answers, m.now.Answers)
	return b
}
