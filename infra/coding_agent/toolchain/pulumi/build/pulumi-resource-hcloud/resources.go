package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

const (
	deletionLimit = 2 * time.Minute // for what still uses a thing to be gone
	pause         = time.Second     // between two attempts
)

// busy are the errors of the cloud that pass by themselves.
var busy = []hcloud.ErrorCode{hcloud.ErrorCodeResourceInUse, hcloud.ErrorCodeLocked, hcloud.ErrorCodeConflict}

// operation is one of the four things that are done with a resource.
type operation func(ctx context.Context, d *schema.ResourceData, client *hcloud.Client) error

// run returns an operation as the SDK wants it.
func (o operation) run(ctx context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
	return diag.FromErr(o(ctx, d, meta.(*hcloud.Client)))
}

// resource puts a resource together. One that is imported is known by its id alone.
func resource(fields map[string]*schema.Schema, create, read, update, remove operation) *schema.Resource {
	return &schema.Resource{
		Schema:        fields,
		CreateContext: create.run,
		ReadContext:   read.run,
		UpdateContext: update.run,
		DeleteContext: remove.run,
		Importer:      &schema.ResourceImporter{StateContext: schema.ImportStatePassthroughContext},
	}
}

// number returns the number that the cloud knows a resource by.
func number(d *schema.ResourceData) (int64, error) {
	id, err := strconv.ParseInt(d.Id(), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not the id of a resource at Hetzner: a number", d.Id())
	}
	return id, nil
}

func setNumber(d *schema.ResourceData, id int64) { d.SetId(strconv.FormatInt(id, 10)) }

// set notes what the cloud says of a resource.
func set(d *schema.ResourceData, values map[string]any) error {
	for name, value := range values {
		if err := d.Set(name, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// labels returns the labels that are wanted. None is not the same as not said: the cloud takes labels away only where
// it gets an empty table.
func labels(d *schema.ResourceData) map[string]string {
	found := map[string]string{}
	for name, value := range d.Get("labels").(map[string]any) {
		found[name] = value.(string)
	}
	return found
}

// done waits until the cloud has done what was asked of it.
func done(ctx context.Context, client *hcloud.Client, actions ...*hcloud.Action) error {
	var begun []*hcloud.Action
	for _, action := range actions {
		if action != nil {
			begun = append(begun, action)
		}
	}
	return client.Action.WaitFor(ctx, begun...)
}

// begun waits for an action that the cloud may have refused to begin.
func begun(ctx context.Context, client *hcloud.Client, action *hcloud.Action, err error) error {
	if err != nil {
		return err
	}
	return done(ctx, client, action)
}

// patiently tries again for a while, as long as the cloud is busy with the resource.
func patiently(ctx context.Context, try func() error) error {
	for deadline := time.Now().Add(deletionLimit); ; {
		err := try()
		if !hcloud.IsError(err, busy...) || time.Now().After(deadline) {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// removed removes a resource, which may be gone already.
func removed(ctx context.Context, remove func() error) error {
	err := patiently(ctx, remove)
	if hcloud.IsError(err, hcloud.ErrorCodeNotFound) {
		return nil
	}
	return err
}

func sleep(ctx context.Context, duration time.Duration) error {
	select {
	case <-time.After(duration):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
