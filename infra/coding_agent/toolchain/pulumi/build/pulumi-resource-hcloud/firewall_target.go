package main

import (
	"context"
	"errors"

	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

// targetFields are the fields of what a firewall is put before: one server, or those with certain labels.
func targetFields() map[string]*schema.Schema {
	return map[string]*schema.Schema{
		"server":         {Type: schema.TypeInt, Optional: true},
		"label_selector": {Type: schema.TypeString, Optional: true},
	}
}

// targetsOf returns what a firewall is to be put before.
func targetsOf(set *schema.Set) (found []hcloud.FirewallResource, err error) {
	for _, item := range set.List() {
		fields := item.(map[string]any)
		server, selector := fields["server"].(int), fields["label_selector"].(string)
		switch {
		case server != 0 && selector != "":
			return nil, errors.New("applyTos: an entry names either a server or a labelSelector")
		case selector != "":
			found = append(found, hcloud.FirewallResource{
				Type:          hcloud.FirewallResourceTypeLabelSelector,
				LabelSelector: &hcloud.FirewallResourceLabelSelector{Selector: selector},
			})
		case server != 0:
			found = append(found, ofServer(int64(server)))
		}
	}
	return found, nil
}

func ofServer(id int64) hcloud.FirewallResource {
	return hcloud.FirewallResource{
		Type: hcloud.FirewallResourceTypeServer, Server: &hcloud.FirewallResourceServer{ID: id},
	}
}

// asTargets returns what a firewall is put before as a state has it.
func asTargets(targets []hcloud.FirewallResource) []map[string]any {
	found := make([]map[string]any, 0, len(targets))
	for _, target := range targets {
		if target.Server != nil {
			found = append(found, map[string]any{"server": int(target.Server.ID)})
		} else if target.LabelSelector != nil {
			found = append(found, map[string]any{"label_selector": target.LabelSelector.Selector})
		}
	}
	return found
}

// retarget puts a firewall before what is new, and takes it from what is not wanted any more.
func retarget(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Firewall) error {
	before, after := d.GetChange("apply_to")
	dropped, err := targetsOf(before.(*schema.Set).Difference(after.(*schema.Set)))
	if err != nil {
		return err
	}
	added, err := targetsOf(after.(*schema.Set).Difference(before.(*schema.Set)))
	if err != nil {
		return err
	}
	if err := attach(ctx, client, changed, added); err != nil {
		return err
	}
	return detach(ctx, client, changed, dropped)
}

func attach(ctx context.Context, client *hcloud.Client, firewall *hcloud.Firewall, to []hcloud.FirewallResource) error {
	for _, target := range to {
		err := patiently(ctx, func() error {
			actions, _, err := client.Firewall.ApplyResources(ctx, firewall, []hcloud.FirewallResource{target})
			if err != nil {
				return err
			}
			return done(ctx, client, actions...)
		})
		if err != nil && !hcloud.IsError(err, hcloud.ErrorCodeFirewallAlreadyApplied) {
			return err
		}
	}
	return nil
}

// away are the errors of the cloud where a firewall is to be taken from what it is not put before.
var away = []hcloud.ErrorCode{
	hcloud.ErrorCodeNotFound, hcloud.ErrorCodeFirewallResourceNotFound, hcloud.ErrorCodeFirewallAlreadyRemoved,
}

// detach takes a firewall from what may be gone meanwhile.
func detach(ctx context.Context, client *hcloud.Client, firewall *hcloud.Firewall, from []hcloud.FirewallResource) error {
	for _, target := range from {
		err := patiently(ctx, func() error {
			actions, _, err := client.Firewall.RemoveResources(ctx, firewall, []hcloud.FirewallResource{target})
			if err != nil {
				return err
			}
			return done(ctx, client, actions...)
		})
		if err != nil && !hcloud.IsError(err, away...) {
			return err
		}
	}
	return nil
}
