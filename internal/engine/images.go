package engine

// Images is where the machine's container engine gets images from that the workflow
// names: a registry on the host's side (package registry has one), which has the
// credentials. Without one the machine asks the registries itself.
type Images interface {
	// Login gives it credentials for a registry, which the machine does not learn.
	Login(registry, user, password string)
	// Via returns the reference by which the machine pulls an image without any;
	// what was pulled is then tagged with its own name.
	Via(image string) (string, error)
}
