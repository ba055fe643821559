package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/image"
)

func (a *app) imageCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "image", Short: "Images that machines boot from: build, list, look into, remove",
		Long: `An image is a kernel, an initramfs with the guest agent, a read-only root file
system and a tools disk with Node. The default one is Ubuntu 24.04 where
Ubuntu's archive answers, else Debian 12, and is built when it is first needed. Images are kept by what they are made of: what has not changed is not
built again.`,
	}
	c.AddCommand(a.imageBuildCommand(), a.imageImportCommand(),
		a.imageListCommand(), a.imageInspectCommand(), a.imageSBOMCommand(), a.imageVerifyCommand(), a.imageRemoveCommand())
	return c
}

// patterns of what goes into an image's manifest and apt's command line.
const (
	packagePattern   = `^[a-z0-9][a-z0-9.+-]+$`
	imageNamePattern = `^[a-zA-Z0-9][a-zA-Z0-9._+-]{0,63}$`
)

func (a *app) imageBuildCommand() *cobra.Command {
	var packages, tools []string
	var opt image.Options
	c := &cobra.Command{
		Use: "build", Short: "Build an image, or what of it is missing; print its id", Args: cobra.NoArgs,
		Long: `Build the default image, that of a recipe, or one with more packages in it. Only
what is not there yet is built; --refresh takes today's packages.

--tools fills the tool cache, where setup actions look before they download, with
the newest Node 20 and so on. It adds to what is there, for all images; with
--name for that one alone; none empties it.

  hearth image build
  hearth image build --recipe ubuntu-22.04
  hearth image build --tools node@20,go@1.24
  hearth image build --packages golang,postgresql --name ci
  hearth run -P ubuntu-latest=ci`,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, list := range packages {
				for p := range strings.SplitSeq(list, ",") {
					if p = strings.TrimSpace(p); p == "" {
						continue
					}
					if !regexp.MustCompile(packagePattern).MatchString(p) {
						return usage("--packages: %q is not the name of a package", p)
					}
					opt.Packages = append(opt.Packages, p)
				}
			}
			if opt.Name != "" && !regexp.MustCompile(imageNamePattern).MatchString(opt.Name) {
				return usage("--name %q: want letters, digits and ._+- (at most 64)", opt.Name)
			}
			if opt.Recipe != "" && !slices.Contains(image.Recipes(), opt.Recipe) {
				return usage("--recipe %q: want %s", opt.Recipe, strings.Join(image.Recipes(), ", "))
			}
			if opt.Name == image.Default || slices.Contains(image.Recipes(), opt.Name) && (len(opt.Packages) > 0 || opt.Name != opt.Recipe) {
				return usage("--name %s is that of what a recipe makes by itself; choose another", opt.Name)
			}
			dirs, err := a.dirs()
			if err != nil {
				return err
			}
			opt.Dir = dirs.Images()
			if opt.Recipe == "" {
				if opt.Recipe = a.getenv("HEARTH_IMAGE"); !slices.Contains(image.Recipes(), opt.Recipe) {
					s, err := a.shelf(c.Context(), dirs, "")
					if err != nil {
						return err
					}
					opt.Recipe = s.Default
				}
			}
			if len(tools) > 0 {
				if opt.Tools, err = wantedTools(opt.Dir, tools); err != nil {
					return err
				}
			}
			img, err := a.buildImage(c.Context(), opt)
			if err != nil {
				return err
			}
			if opt.Tools != nil && opt.Name == "" {
				if err := image.WriteTools(opt.Dir, opt.Tools); err != nil {
					return &exit{exitInfrastructure, err}
				}
			}
			fmt.Fprintln(a.out, img.ID)
			if isTerminal(a.out) {
				fmt.Fprintf(a.err, "image %s: %s, in %s\n", img.Name, megabytes(img.Size()), opt.Dir)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&opt.Recipe, "recipe", "", "the system: "+strings.Join(image.Recipes(), ", ")+" (default: the default image's)")
	f.StringSliceVar(&packages, "packages", nil, "packages wanted beyond the default ones")
	f.StringSliceVar(&tools, "tools", nil, "what the tool cache has as well: "+strings.Join(image.ToolNames(), ", ")+", as in node@20; or none")
	f.StringVar(&opt.Name, "name", "", "what it is called in lists, and with --image and -P")
	f.StringVar(&opt.Mirror, "mirror", "", "mirror of the system's packages (default: this machine's, or its makers')")
	f.BoolVar(&opt.Refresh, "refresh", false, "build anew, with the packages of today")
	return c
}

// wantedTools are those that images get and those that are added; "none" takes away all.
func wantedTools(dir string, added []string) ([]image.Tool, error) {
	if len(added) == 1 && added[0] == "none" {
		return []image.Tool{}, nil
	}
	have, err := image.ReadTools(dir)
	if err != nil {
		return nil, &exit{exitInfrastructure, err}
	}
	if _, err := image.ParseTools(added); err != nil {
		return nil, usage("--tools: %v", err)
	}
	for _, t := range have {
		added = append(added, t.String())
	}
	return image.ParseTools(added)
}

func (a *app) imageImportCommand() *cobra.Command {
	var opt image.Options
	c := &cobra.Command{
		Use: "import IMAGE", Short: "Make a machine's image of a container image; print its id", Args: cobra.ExactArgs(1),
		Long: `Make an image of a container image's file system, so that jobs find there what they
find in it, with a kernel of their own below. IMAGE is one of

  docker://NAME          in a registry, with what docker login left
  docker-archive:FILE    what docker save writes
  oci-archive:FILE       an OCI layout, as an archive
  oci:DIRECTORY          or as a directory

The user runner is added, and the image's environment kept; its entry point, user
and volumes mean nothing to a machine. Jobs run there by the image's name:

  hearth image import docker://golang:1.24-bookworm --name go
  hearth run -P ubuntu-latest=go`,
		RunE: func(c *cobra.Command, args []string) error {
			if opt.Name == "" {
				opt.Name = importName(args[0])
			}
			if !regexp.MustCompile(imageNamePattern).MatchString(opt.Name) {
				return usage("--name %q: want letters, digits and ._+- (at most 64)", opt.Name)
			}
			if opt.Name == image.Default || slices.Contains(image.Recipes(), opt.Name) {
				return usage("--name %s is that of what a recipe makes; choose another", opt.Name)
			}
			dirs, err := a.dirs()
			if err != nil {
				return err
			}
			opt.Dir = dirs.Images()
			tmp := filepath.Join(opt.Dir, "tmp")
			if err := os.MkdirAll(tmp, 0o700); err != nil {
				return &exit{exitInfrastructure, err}
			}
			opt.Import, err = image.OpenImport(c.Context(), args[0], tmp)
			if err != nil {
				return &exit{exitInfrastructure, err}
			}
			defer opt.Import.Close()
			img, err := a.buildImage(c.Context(), opt)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, img.ID)
			fmt.Fprintf(a.err, "image %s: %s of %s\n", img.Name, megabytes(img.Size()), board.Clean(opt.Import.Digest))
			for _, w := range img.Wants() {
				fmt.Fprintln(a.err, "note:", w)
			}
			return nil
		},
	}
	c.Flags().StringVar(&opt.Name, "name", "", "what it is called in lists, and with --image and -P (default: made of IMAGE)")
	return c
}

// importName makes a name of a reference: docker://ghcr.io/acme/ci:1.2 is ci-1.2.
func importName(reference string) string {
	_, rest, _ := strings.Cut(reference, ":")
	rest, _, _ = strings.Cut(rest, "@")
	rest = strings.TrimSuffix(rest[strings.LastIndexByte(rest, '/')+1:], ".tar")
	return strings.ReplaceAll(rest, ":", "-")
}

func megabytes(n int64) string { return fmt.Sprintf("%d MB", (n+500_000)/1_000_000) }

func (a *app) imageListCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the images there are", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dirs, err := a.dirs()
			if err != nil {
				return err
			}
			all, err := image.List(dirs.Images())
			if err != nil {
				return &exit{exitInfrastructure, err}
			}
			if asJSON {
				return board.NewEncoder(a.out).Encode(struct {
					Images []image.Info `json:"images"`
				}{append([]image.Info{}, all...)})
			}
			if len(all) == 0 {
				fmt.Fprintln(a.err, "there is no image: hearth image build makes the default one")
				return nil
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tNAME\tSIZE\tBUILT\tUSED\tCONTAINERS\tPACKAGES")
			for _, i := range all {
				name := board.Clean(i.Name)
				if i.Default {
					name += " *"
				}
				containers := "-"
				if i.Containers {
					containers = "yes"
				}
				fmt.Fprintf(w, "%.12s\t%s\t%s\t%s ago\t%s ago\t%s\t%s\n", i.ID, name, megabytes(i.Size), board.Short(time.Since(i.Created)),
					board.Short(time.Since(i.Used)), containers,
					board.Clean(cmp.Or(strings.Join(slices.Concat(i.Packages, i.Tools), ","), "-")))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

// openImage opens the image that a command line names, or the default one.
func (a *app) openImage(args []string) (*image.Image, error) {
	dirs, err := a.dirs()
	if err != nil {
		return nil, err
	}
	ref := image.Default
	if len(args) > 0 {
		ref = args[0]
	}
	if ref == image.Default {
		s, err := image.ReadShelf(dirs.Images(), a.getenv("HEARTH_IMAGE"), nil)
		if err != nil {
			return nil, &exit{exitInfrastructure, err}
		}
		ref = s.Default
	}
	img, err := image.Open(dirs.Images(), ref)
	switch {
	case errors.Is(err, image.ErrNotFound):
		return nil, &exit{exitUsage, err}
	case err != nil:
		return nil, &exit{exitInfrastructure, err}
	}
	return img, nil
}

func (a *app) imageInspectCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "inspect [IMAGE]", Short: "What is in an image and where it came from", Args: cobra.MaximumNArgs(1),
		Long: `Show an image's layers, files and sums, how many packages each layer holds, and
the programs that are pinned rather than signed by a distribution. --json lists every
package; hearth image sbom is the same in a standard format.`,
		RunE: func(_ *cobra.Command, args []string) error {
			img, err := a.openImage(args)
			if err != nil {
				return err
			}
			contents, contentsErr := img.Contents()
			if contentsErr != nil && errors.Is(contentsErr, image.ErrCorrupt) {
				return &exit{exitInfrastructure, contentsErr}
			}
			if asJSON {
				return board.NewEncoder(a.out).Encode(struct {
					ID       string                     `json:"id"`
					Name     string                     `json:"name"`
					Packages []string                   `json:"packages,omitempty"`
					Created  time.Time                  `json:"created"`
					Layers   []*image.Layer             `json:"layers"`
					Contents map[string][]image.Package `json:"contents,omitempty"`
				}{img.ID, img.Name, img.Packages, img.Created, img.Layers, contents})
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "image\t%s\n", board.Clean(img.Name))
			fmt.Fprintf(w, "id\t%s\n", img.ID)
			fmt.Fprintf(w, "built\t%s (%s ago)\n", img.Created.Format(time.DateTime), board.Short(time.Since(img.Created)))
			fmt.Fprintf(w, "size\t%s\n", megabytes(img.Size()))
			for _, l := range img.Layers {
				fmt.Fprintf(w, "%s\t%s\n", l.Kind, l.ID)
				for _, f := range l.Files {
					if !strings.HasSuffix(f.Name, ".ko") {
						fmt.Fprintf(w, "\t%s  sha256 %s\n", board.Clean(f.Name), f.SHA256)
					}
				}
				count := 0
				for _, p := range contents[l.Kind] {
					if p.In == "" {
						count++
					}
					if p.In != "" || p.Type == "deb" && l.Kind == "base" {
						continue
					}
					line := fmt.Sprintf("%s %s  sha256 %s", p.Name, p.Version, p.SHA256)
					if p.Upstream != "" {
						line += "  upstream: " + p.Upstream
					}
					fmt.Fprintf(w, "\t%s\n", board.Clean(line))
				}
				if l.Kind == "base" && count > 0 {
					fmt.Fprintf(w, "\t%d packages of %s\n", count, contents[l.Kind][0].Release())
				}
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if contentsErr != nil {
				fmt.Fprintln(a.err, contentsErr)
			}
			if old := img.Outdated(); old != "" {
				fmt.Fprintln(a.err, old)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON, with every package")
	return c
}

func (a *app) imageSBOMCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sbom [IMAGE]", Short: "Print an image's bill of materials (CycloneDX 1.6, JSON)", Args: cobra.MaximumNArgs(1),
		Long: `Print every file and every package of an image, with versions and sums, for
scanners and for the record:

  hearth image sbom > sbom.json`,
		RunE: func(_ *cobra.Command, args []string) error {
			img, err := a.openImage(args)
			if err != nil {
				return err
			}
			bom, err := img.SBOM()
			if err != nil {
				return &exit{exitInfrastructure, err}
			}
			_, err = a.out.Write(bom)
			return err
		},
	}
}

func (a *app) imageVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify [IMAGE]", Short: "Read every byte of an image and compare it with what was built", Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			img, err := a.openImage(args)
			if err != nil {
				return err
			}
			if err := img.Verify(); err != nil {
				return &exit{exitInfrastructure, err}
			}
			fmt.Fprintf(a.out, "image %s (%s): every byte is as it was built\n", board.Clean(img.Name), img.ID)
			return nil
		},
	}
}

func (a *app) imageRemoveCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "rm ID… | --all", Short: "Remove images, by id or name, with their snapshots", Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usage("want ids, or --all\nsee: %s --help", c.CommandPath())
			}
			dirs, err := a.dirs()
			if err != nil {
				return err
			}
			if all {
				list, err := image.List(dirs.Images())
				if err != nil {
					return &exit{exitInfrastructure, err}
				}
				for _, i := range list {
					args = append(args, i.ID)
				}
			}
			var errs []error
			code := exitUsage
			var freed int64
			for _, ref := range args {
				n, err := image.Remove(c.Context(), dirs.Images(), ref)
				switch {
				case err == nil:
					freed += n
					fmt.Fprintln(a.out, ref)
				case errors.Is(err, image.ErrNotFound) && !all:
					errs = append(errs, err)
				case errors.Is(err, image.ErrNotFound): // somebody else was faster
				case errors.Is(err, os.ErrInvalid):
					errs = append(errs, err)
				default:
					code = exitInfrastructure
					errs = append(errs, err)
				}
			}
			if freed > 0 {
				fmt.Fprintf(a.err, "%s freed\n", megabytes(freed))
			}
			if len(errs) > 0 {
				return &exit{code, errors.Join(errs...)}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every image")
	return c
}
