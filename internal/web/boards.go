package web

import (
	"context"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
)

// boards keeps what the records of the runs that are looked at add up to: each
// look reads on where the last one ended.
type boards struct {
	mu  sync.Mutex
	all map[string]*kept
}

// kept is one of them.
type kept struct {
	used time.Time // guarded by boards.mu

	turn      chan struct{} // held by whoever looks
	board     board.Board
	seq       int64 // of the last record it has
	moreNotes int   // than are kept
}

// with gives fn the board of a run as it is now; nobody else has it meanwhile.
func (s *boards) with(ctx context.Context, from Source, run string, fn func(*kept) error) error {
	k := s.get(run)
	select {
	case k.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-k.turn }()
	const batch = 500
	for range maxRecords / batch {
		records, err := from.Records(ctx, run, k.seq, batch)
		if err != nil {
			return err
		}
		for _, r := range records {
			k.board.Apply(r)
			k.seq = r.Seq
			if over := len(k.board.Notes) - maxNotes; over > 0 {
				k.board.Notes = k.board.Notes[:maxNotes]
				k.moreNotes += over
			}
		}
		if len(records) < batch {
			break
		}
	}
	return fn(k)
}

// get finds a board or begins one, in the place of the one that nobody has
// looked at for longest.
func (s *boards) get(run string) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.all[run]
	if k == nil {
		oldest := ""
		for id, o := range s.all {
			if oldest == "" || o.used.Before(s.all[oldest].used) {
				oldest = id
			}
		}
		if len(s.all) >= maxBoards {
			delete(s.all, oldest)
		}
		if s.all == nil {
			s.all = map[string]*kept{}
		}
		k = &kept{turn: make(chan struct{}, 1), board: board.Board{Documents: maxDocuments}}
		s.all[run] = k
	}
	k.used = time.Now()
	return k
}
