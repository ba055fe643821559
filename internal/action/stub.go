package action

// CheckoutRequest is what actions/checkout asks of the run's own repository.
type CheckoutRequest struct {
	Ref   string // branch, tag or commit; "" is the run's own
	Depth int    // commits of history; 0 is all
	Tags  bool
}

// Resolver brings remote actions.
type Resolver struct{}
