package main

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// fuzz gives every fuzz target some time. Go fuzzes one target of one package
// at a time.
func (a *all) fuzz(each time.Duration) error {
	pkgs, err := a.list("{{.ImportPath}}")
	if err != nil {
		return err
	}
	var errs []error
	for _, pkg := range pkgs {
		out, err := a.output("go", "test", "-list=^Fuzz", pkg)
		if err != nil {
			return err
		}
		for name := range strings.FieldsSeq(out) {
			if !strings.HasPrefix(name, "Fuzz") {
				continue
			}
			if a.run != "" && !strings.Contains(name, a.run) {
				continue
			}
			fmt.Printf("--- %s %s\n", strings.TrimPrefix(pkg, module+"/"), name)
			errs = append(errs, a.command("go", "test", "-run=^$", "-fuzz=^"+name+"$", fmt.Sprintf("-fuzztime=%v", each), pkg))
			if a.ctx.Err() != nil {
				return errors.Join(append(errs, a.ctx.Err())...)
			}
		}
	}
	return errors.Join(errs...)
}
