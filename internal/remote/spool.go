package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

const (
	// maxSpool is how many bytes of records a job may have that no server has taken: one
	// that tells more waits until some are. They are in memory, and nowhere else.
	maxSpool = 32 << 20
	// batchBytes is how much is sent at once, where it is more than one record.
	batchBytes = 1 << 20
	// batchTime is how long records wait for others before they are sent.
	batchTime = 100 * time.Millisecond
)

// spool holds the records of an attempt that the server has not taken yet, in order.
type spool struct {
	job     *job
	mu      sync.Mutex
	changed chan struct{} // closed and replaced
	records []json.RawMessage
	first   int64 // the number of records[0]
	bytes   int
	failed  error // the server does not take them
	done    chan struct{}
}

func newSpool(j *job) *spool {
	s := &spool{job: j, changed: make(chan struct{}), first: 1, done: make(chan struct{})}
	go s.send()
	return s
}

// wait returns when nothing is sent any more: after the attempt is lost, or over.
func (s *spool) wait() { <-s.done }

func (s *spool) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// put adds a record, once there is room.
func (s *spool) put(r ci.Record) error {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	r.Time = r.Time.UTC()
	text, err := r.AppendJSON(nil)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.bytes > 0 && s.bytes+len(text) > maxSpool && s.failed == nil {
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-s.job.ctx.Done():
		}
		s.mu.Lock()
		if s.job.ctx.Err() != nil {
			return context.Cause(s.job.ctx)
		}
	}
	if s.failed != nil {
		return s.failed
	}
	s.records = append(s.records, text)
	s.bytes += len(text)
	s.change()
	return nil
}

// batch is what is sent next.
func (s *spool) batch() (recordsRequest, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, bytes := 0, 0
	for n < len(s.records) && n < maxBatch && (n == 0 || bytes+len(s.records[n]) <= batchBytes) {
		bytes += len(s.records[n])
		n++
	}
	return recordsRequest{First: s.first, Records: s.records[:n:n]}, s.changed
}

func (s *spool) send() {
	defer close(s.done)
	ctx := s.job.ctx
	for {
		q, changed := s.batch()
		if len(q.Records) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			t := time.NewTimer(batchTime)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
			continue
		}
		var a recordsAnswer
		err := s.job.call(ctx, "records", q, &a)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		switch n := a.Next - s.first; {
		case err != nil:
			s.failed = fmt.Errorf("the server does not take what the job tells: %w", err)
		case n <= 0 || n > int64(len(s.records)):
			s.failed = refuse(http.StatusBadGateway, "the server says that record %d comes next, after %d and %d more", a.Next, s.first, len(s.records))
		default:
			for _, r := range s.records[:n] {
				s.bytes -= len(r)
			}
			s.records, s.first = append([]json.RawMessage(nil), s.records[n:]...), a.Next
		}
		failed := s.failed
		s.change()
		s.mu.Unlock()
		if failed != nil {
			s.job.c.cfg.Log.Error("records", "job", s.job.fence.Job, "err", failed)
			return
		}
	}
}

// drain waits until the server has taken everything.
func (s *spool) drain(ctx context.Context) error {
	for {
		s.mu.Lock()
		left, failed, changed := len(s.records), s.failed, s.changed
		s.mu.Unlock()
		if left == 0 || failed != nil {
			return failed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.job.ctx.Done():
			return context.Cause(s.job.ctx)
		}
	}
}
