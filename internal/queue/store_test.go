package queue_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/queue"
)

var errStore = errors.New("the database is away")

// scripted is a store whose answers a test sets, and what it was asked. What is
// nil answers that there is nothing.
type scripted struct {
	mu     sync.Mutex
	claims []time.Time // moments at which a claim was asked
	leases []time.Time // until when claims and heartbeats asked
	renews int
	added  struct {
		available, now time.Time
		attempts       int
	}

	err    error // of everything but claims and renewals
	fresh  bool
	was    string
	held   bool
	claim  func(n int) (string, int, bool, error) // the nth, from 1
	renew  func(n int) (bool, string, error)
	expire func() ([]string, []string, error)
}

func (s *scripted) QueueAdd(_ context.Context, it queue.Item, now time.Time, attempts int) (bool, error) {
	s.added.available, s.added.now, s.added.attempts = it.After, now, attempts
	return s.fresh, s.err
}

func (s *scripted) QueueClaim(_ context.Context, _ queue.Offer, now, lease time.Time) (string, int, bool, error) {
	s.mu.Lock()
	s.claims, s.leases = append(s.claims, now), append(s.leases, lease)
	n := len(s.claims)
	s.mu.Unlock()
	if s.claim == nil {
		return "", 0, false, nil
	}
	return s.claim(n)
}

func (s *scripted) QueueGrace(context.Context, string, time.Time) error { return s.err }

func (s *scripted) QueueRenew(_ context.Context, _ string, _ int, lease time.Time) (bool, string, error) {
	s.mu.Lock()
	s.renews++
	s.leases = append(s.leases, lease)
	n := s.renews
	s.mu.Unlock()
	if s.renew == nil {
		return true, "", nil
	}
	return s.renew(n)
}

func (s *scripted) QueueFinish(context.Context, string, int, ci.Conclusion, string) (bool, error) {
	return s.held, s.err
}

func (s *scripted) QueueRelease(_ context.Context, _ string, _ int, available time.Time, _ string) (bool, error) {
	s.added.available = available
	return s.held, s.err
}

func (s *scripted) QueueExpire(context.Context, string, time.Time) ([]string, []string, error) {
	if s.expire != nil {
		return s.expire()
	}
	return nil, nil, s.err
}

func (s *scripted) QueueCancel(context.Context, string, string) (string, error) { return s.was, s.err }

// asked is how often a claim was asked, and a lease renewed.
func (s *scripted) asked() (claims, renews int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.claims), s.renews
}

// once hands out one job, and then no more.
func once(n int) (string, int, bool, error) { return "x", 1, n == 1, nil }

// TestConfig: what a configuration leaves out has its value, what it says stays.
func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg         queue.Config
		lease, poll time.Duration
		attempts    int
	}{
		{queue.Config{}, 20 * time.Second, time.Second, 2},
		{queue.Config{Lease: -1, Poll: -1, Attempts: -1}, 20 * time.Second, time.Second, 2},
		{queue.Config{Lease: time.Minute, Poll: 3 * time.Second, Attempts: 1}, time.Minute, 3 * time.Second, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &scripted{fresh: true, claim: func(n int) (string, int, bool, error) { return "x", 1, n == 2, nil }}
			q := queue.New(s, c.cfg)
			later := time.Now().Add(time.Hour)
			if _, err := q.Add(t.Context(), queue.Item{JobID: ci.NewID(), Labels: []string{"l"}, After: later}); err != nil || !s.added.available.Equal(later) {
				t.Errorf("%v: available at %v, asked for %v", err, s.added.available, later)
			}
			if _, err := q.Add(t.Context(), queue.Item{JobID: ci.NewID(), Labels: []string{"l"}}); err != nil || !s.added.available.Equal(time.Now()) {
				t.Errorf("%v: available at %v, it is %v", err, s.added.available, time.Now())
			}
			if s.added.attempts != c.attempts {
				t.Errorf("%+v: %d attempts", c.cfg, s.added.attempts)
			}
			start := time.Now()
			if _, err := q.Claim(t.Context(), queue.Offer{Worker: "w", Labels: []string{"l"}}); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d != c.poll {
				t.Errorf("%+v: looked again after %v", c.cfg, d)
			}
			if d := s.leases[0].Sub(s.claims[0]); d != c.lease {
				t.Errorf("%+v: a lease of %v", c.cfg, d)
			}
		})
	}
}

// TestMoments: two entries of one millisecond are a millisecond apart, and no more.
func TestMoments(t *testing.T) {
	s := &scripted{}
	q := queue.New(s, queue.Config{Now: func() time.Time { return time.UnixMilli(1_800_000_000_000) }})
	for i := range 3 {
		if _, err := q.Add(t.Context(), queue.Item{JobID: ci.NewID(), Labels: []string{"l"}}); err != nil || s.added.now.UnixMilli() != 1_800_000_000_000+int64(i) {
			t.Errorf("%d: %v %d", i, err, s.added.now.UnixMilli())
		}
	}
}

// TestStoreFails: what the store could not do is an error of every call, and no
// answer; what it refused is ErrLost.
func TestStoreFails(t *testing.T) {
	ctx := t.Context()
	s := &scripted{fresh: true, held: true, was: "queued", claim: func(n int) (string, int, bool, error) { return "x", 1, true, nil }}
	q := queue.New(s, queue.Config{})
	c, err := q.TryClaim(ctx, queue.Offer{Worker: "w", Labels: nil})
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() (bool, error){
		"add":     func() (bool, error) { return q.Add(ctx, queue.Item{JobID: ci.NewID(), Labels: []string{"l"}}) },
		"cancel":  func() (bool, error) { return q.Cancel(ctx, "x", "") },
		"finish":  func() (bool, error) { err := c.Finish(ctx, ci.Success, ""); return err == nil, err },
		"release": func() (bool, error) { err := c.Release(ctx, time.Second, ""); return err == nil, err },
		"renew":   func() (bool, error) { err := c.Renew(ctx); return err == nil, err },
		"claim": func() (bool, error) {
			c, err := q.TryClaim(ctx, queue.Offer{Worker: "w", Labels: nil})
			return c != nil, err
		},
		"expire": func() (bool, error) { e, err := q.Expire(ctx); return len(e.Requeued) > 0, err },
	}
	s.expire = func() ([]string, []string, error) { return []string{"x"}, nil, s.err }
	for name, call := range calls {
		if ok, err := call(); !ok || err != nil {
			t.Errorf("%s: %v %v", name, ok, err)
		}
	}
	s.err, s.held = errStore, true
	s.renew = func(int) (bool, string, error) { return true, "", errStore }
	s.claim = func(int) (string, int, bool, error) { return "x", 1, true, errStore }
	for name, call := range calls {
		if ok, err := call(); ok || !errors.Is(err, errStore) {
			t.Errorf("%s of a store that fails: %v %v", name, ok, err)
		}
	}
	if _, err := q.Claim(ctx, queue.Offer{Worker: "w", Labels: nil}); !errors.Is(err, errStore) {
		t.Errorf("waiting for a job of a store that fails: %v", err)
	}
	s.err, s.held, s.fresh, s.was = nil, false, false, "claimed"
	s.renew = func(int) (bool, string, error) { return false, "", nil }
	for _, name := range []string{"finish", "release", "renew"} {
		if _, err := calls[name](); !errors.Is(err, queue.ErrLost) {
			t.Errorf("%s of somebody else's: %v", name, err)
		}
	}
	for _, name := range []string{"add", "cancel"} {
		if ok, err := calls[name](); ok || err != nil {
			t.Errorf("%s: %v %v", name, ok, err)
		}
	}
	s.held = true
	if err := c.Finish(ctx, "fine", ""); err == nil {
		t.Error("a job ended with a conclusion that does not exist")
	}
	if _, err := q.Add(ctx, queue.Item{JobID: "../x", Labels: []string{"l"}}); err == nil {
		t.Error("what is no id was taken")
	}
	if _, err := q.Add(ctx, queue.Item{JobID: ci.NewID()}); err == nil {
		t.Error("a job for every runner was taken")
	}
}

// TestWoken: a worker that waits looks at once when something may be there for it,
// and at nothing else.
func TestWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{claim: once, held: true}
		q := queue.New(s, queue.Config{Poll: time.Hour})
		c, err := q.TryClaim(t.Context(), queue.Offer{Worker: "w", Labels: nil})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { _, err := q.Claim(ctx, queue.Offer{Worker: "w", Labels: nil}); ended <- err }()
		synctest.Wait()
		add := func() { _, _ = q.Add(ctx, queue.Item{JobID: ci.NewID(), Labels: []string{"l"}}) }
		expire := func() { _, _ = q.Expire(ctx) }
		for i, step := range []struct {
			do    func()
			wakes bool
		}{
			{add, false}, // it was there before
			{func() { s.fresh = true; add() }, true},
			{func() { s.err = errStore; add() }, false},
			{func() { _ = c.Release(ctx, 0, "") }, false},
			{func() { s.err = nil; _ = c.Release(ctx, 0, "") }, true},
			{func() { s.held = false; _ = c.Release(ctx, 0, "") }, false},
			{expire, false},
			{func() { s.expire = func() ([]string, []string, error) { return nil, []string{"x"}, nil }; expire() }, false},
			{func() { s.expire = func() ([]string, []string, error) { return []string{"x"}, nil, nil }; expire() }, true},
			{q.Wake, true}, {q.Wake, true},
			{func() { time.Sleep(time.Hour) }, true},
		} {
			before, _ := s.asked()
			step.do()
			synctest.Wait()
			if after, _ := s.asked(); after-before > 1 || (after > before) != step.wakes {
				t.Errorf("%d: looked %d times", i, after-before)
			}
		}
		why := errors.New("why")
		stop(why)
		if err := <-ended; !errors.Is(err, why) {
			t.Errorf("ended with %v", err)
		}
	})
}

// TestHold: what each answer to a heartbeat means for the job that runs.
func TestHold(t *testing.T) {
	const lease = 30 * time.Second
	type answer = func(n int) (bool, string, error)
	for _, c := range []struct {
		name  string
		renew answer
		runs  time.Duration // the job, if nothing ends it
		ended time.Duration // when its context ended; 0: it did not
		cause func(error) bool
		beats int // until the job has returned
	}{
		{"kept", func(int) (bool, string, error) { return true, "", nil }, 10 * lease, 0, nil, 30},
		// Somebody else may have the job: it stops with the first heartbeat that says so, and no other is sent.
		{"lost while it runs", func(n int) (bool, string, error) { return n < 3, "", nil }, 10 * lease, lease,
			func(err error) bool { return errors.Is(err, queue.ErrLost) }, 3},
		// It winds up under its lease for a minute after it was told.
		{"cancelled", func(n int) (bool, string, error) { return true, map[bool]string{true: "newer push"}[n >= 2], nil }, 10 * lease, 2 * lease / 3,
			func(err error) bool {
				c, ok := errors.AsType[*queue.CancelledError](err)
				return ok && c.Reason == "newer push" && c.Error() == "cancelled: newer push"
			}, 8},
		// Two heartbeats may fail in a row.
		{"a store that comes back", func(n int) (bool, string, error) {
			if n%3 != 0 {
				return false, "", errStore
			}
			return true, "", nil
		}, 10 * lease, 0, nil, 30},
		// Three may not: it ends when the lease has, counted from the last answer.
		{"a store that goes away", func(n int) (bool, string, error) {
			if n > 3 {
				return true, "", errStore
			}
			return true, "", nil
		}, 10 * lease, 2 * lease, func(err error) bool { return errors.Is(err, queue.ErrLost) }, 6},
		// To be told to stop is an answer, too.
		{"cancelled, then a store that goes away", func(n int) (bool, string, error) {
			if n > 3 {
				return true, "", errStore
			}
			return true, map[bool]string{true: "stop"}[n == 3], nil
		}, 10 * lease, lease, func(err error) bool { _, ok := errors.AsType[*queue.CancelledError](err); return ok }, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{renew: c.renew, claim: once}
				q := queue.New(s, queue.Config{Lease: lease})
				claim, err := q.TryClaim(t.Context(), queue.Offer{Worker: "w", Labels: nil})
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				back := errors.New("back")
				err = claim.Hold(t.Context(), func(ctx context.Context) error {
					select {
					case <-time.After(c.runs + time.Second):
					case <-ctx.Done():
						if d := time.Since(start); d != c.ended {
							t.Errorf("ended after %v, want %v", d, c.ended)
						}
						if err := context.Cause(ctx); c.cause == nil || !c.cause(err) {
							t.Errorf("ended with %v", err)
						}
						time.Sleep(2*lease + time.Second)
						return back
					}
					if c.ended != 0 {
						t.Error("did not end")
					}
					return back
				})
				if !errors.Is(err, back) {
					t.Errorf("%v", err)
				}
				time.Sleep(5 * lease)
				if _, beats := s.asked(); beats != c.beats {
					t.Errorf("%d heartbeats, want %d", beats, c.beats)
				}
				for _, until := range s.leases[1:] {
					if !until.After(start.Add(lease)) {
						t.Errorf("a heartbeat asked for a lease until %v", until.Sub(start))
					}
				}
			})
		})
	}
}

// TestHoldOutlives: a worker that stops keeps the job until it has wound up.
func TestHoldOutlives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{claim: once}
		c, err := queue.New(s, queue.Config{Lease: 3 * time.Second}).TryClaim(t.Context(), queue.Offer{Worker: "w", Labels: nil})
		if err != nil {
			t.Fatal(err)
		}
		why := errors.New("why")
		ctx, stop := context.WithCancelCause(t.Context())
		stop(why)
		if err := c.Hold(ctx, func(ctx context.Context) error {
			time.Sleep(10*time.Second + time.Millisecond)
			return context.Cause(ctx)
		}); !errors.Is(err, why) {
			t.Error(err)
		}
		if _, beats := s.asked(); beats != 10 {
			t.Errorf("%d heartbeats", beats)
		}
	})
}

// TestWorkers: at most n at once, and as many; a claim or an expiry that fails is
// tried again; what was lost is told, and nothing else; the end waits for jobs.
func TestWorkers(t *testing.T) {
	for _, n := range []int{0, 1, 3} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			var told []queue.Expired
			expiries, running, most, ran := 0, 0, 0, 0
			s := &scripted{
				claim: func(n int) (string, int, bool, error) {
					if n <= 5 || n == 8 {
						return "", 0, false, errStore
					}
					return "x", 1, true, nil
				},
				expire: func() ([]string, []string, error) {
					switch expiries++; expiries {
					case 1, 2:
						return []string{"not"}, nil, errStore
					case 4:
						return []string{"a"}, nil, nil
					case 6:
						return nil, []string{"b"}, nil
					}
					return nil, nil, nil
				},
			}
			q := queue.New(s, queue.Config{Poll: time.Second, Lease: time.Hour})
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			expired := func(e queue.Expired) { told = append(told, e) }
			if n == 0 {
				expired = nil
			}
			go func() {
				ended <- work(q, ctx, []string{"l"}, n, func(ctx context.Context, c *queue.Claim) error {
					mu.Lock()
					running, ran = running+1, ran+1
					most = max(most, running)
					mu.Unlock()
					time.Sleep(4 * time.Second)
					mu.Lock()
					running--
					mu.Unlock()
					return errStore // only told in the log
				}, expired)
			}()
			time.Sleep(4*time.Second + time.Millisecond)
			if ran != 0 {
				t.Errorf("%d jobs ran although no claim got through", ran)
			}
			time.Sleep(30 * time.Second)
			before := ran
			stop()
			synctest.Wait()
			select {
			case <-ended:
				t.Error("ended before its jobs did")
			default:
			}
			if err := <-ended; err != nil || running != 0 || ran != before {
				t.Errorf("%v, %d still run, %d were taken after the end", err, running, ran-before)
			}
			if most != max(n, 1) || ran < 6 {
				t.Errorf("%d jobs, %d at once of %d", ran, most, n)
			}
			if n > 0 && (len(told) != 2 || !slices.Equal(told[0].Requeued, []string{"a"}) || !slices.Equal(told[1].Lost, []string{"b"})) {
				t.Errorf("%+v", told)
			}
			// A worker that waits ends at once, too.
			s = &scripted{}
			ctx, stop = context.WithCancel(t.Context())
			go func() {
				ended <- work(queue.New(s, queue.Config{Poll: time.Hour}), ctx, nil, 1, nil, nil)
			}()
			synctest.Wait()
			start := time.Now()
			stop()
			if err := <-ended; err != nil || time.Since(start) != 0 {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			// So does one whose store has just failed.
			s = &scripted{claim: func(int) (string, int, bool, error) { return "", 0, false, errStore }}
			ctx, stop = context.WithCancel(t.Context())
			go func() {
				ended <- work(queue.New(s, queue.Config{Poll: time.Hour}), ctx, nil, 1, nil, nil)
			}()
			synctest.Wait()
			start = time.Now()
			stop()
			if err := <-ended; err != nil || time.Since(start) != 0 {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	}
}
