package door

import "sync"

// Slots counts who holds what of something scarce.
type Slots struct {
	most, each int

	mu   sync.Mutex
	all  int
	held map[string]int
}

// NewSlots returns slots of which there are most, and each for one client.
func NewSlots(most, each int) *Slots { return &Slots{most: most, each: each, held: map[string]int{}} }

// Take takes a slot for a client. It returns nil if there is none: then mine
// says whether the client itself holds too many.
func (s *Slots) Take(client string) (release func(), mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if mine = s.held[client] >= s.each; mine || s.all >= s.most {
		return nil, mine
	}
	s.all++
	s.held[client]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.held[client]--; s.held[client] == 0 {
			delete(s.held, client)
		}
	}), false
}

// Held is how many slots are taken.
func (s *Slots) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}
